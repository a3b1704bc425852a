"""One client of a port, from its connection to the moment that it has left."""
