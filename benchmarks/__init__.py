"""What the README's figures come from. `make bench` runs every one; each prints a table with the hardware it ran on."""
