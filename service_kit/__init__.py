"""What both servers share: settings, life cycle, health, limits, errors, metrics, logs."""
