"""Programs that measure, attack and draw; README.md lists them."""
