"""One client at a board: what it asks and gets, from its connection to the moment it is gone."""
