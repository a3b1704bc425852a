"""The tty of one board over time: opened, read, written, set, lost, opened again."""
