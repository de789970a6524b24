"""The load-test client: how much the services bear, how long they take, and where the time goes.

`run` puts the parts together. Processes of `worker` send the calls and report what became of each through `fleet`; a
`record` adds it up, and all figures come from there. docs/load-testing.md says how to use it and how to read them.
"""
