"""The ports announced by multicast DNS, and those of all gateways found; zeroconf stays in here."""
