"""Flashing boards over the network: here, with esptool as a process, and from elsewhere."""
