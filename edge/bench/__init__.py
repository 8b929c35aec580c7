"""What a box carries with a bundle and a station file, measured: `rust-edge bench`."""
