"""rust-edge on the device: camera lines in, defect events out. Imports neither torch nor anything of the upper floors."""

import os

# OpenCV reads these limits once, when it is imported; a strip of 16384 columns passes its 2^30 pixels at 65536 lines.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**36))
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_HEIGHT", str(2**26))

__version__ = "0.1.0"
