"""Next tokens chosen on the device, without waiting for it."""
