"""The operator's YAML file: what it may say, every check of it and each message."""
