"""What runs for one entry of the YAML: its device, and the way in for its clients."""
