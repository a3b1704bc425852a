"""The configuration file: its keys, how it is read, its checks and their messages."""
