"""Plugged-in USB devices, and which port of the YAML has which device."""
