"""The checks of deploy/: `make check-deploy`, or python -m deploy.checks [NAME...] in its environment."""
