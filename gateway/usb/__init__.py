"""What is plugged in, and which port of the YAML has which device."""
