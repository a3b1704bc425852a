"""Simulated ESP boards behind `sim://`, to try and to test the gateway without hardware."""
