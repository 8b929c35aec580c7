"""rust-edge on the device: camera lines in, defect events out. Imports neither torch nor anything of the upper floors."""

__version__ = "0.1.0"
