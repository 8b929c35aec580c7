"""Keras networks with weights that mean something, and the files that Keras 3 and TF-Keras 2 make of them.

Run as a script by an interpreter that has TensorFlow, TF-Keras and Keras, it writes the files of TF-Keras 2 and, beside each
of them, what the network answered there: `python keras_checkpoints.py FOLDER`.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import numpy as np

BUILDERS = Path(__file__).resolve().parents[2] / "export" / "networks" / "keras_builders.py"


def uncommon_layers(keras, first="first_conv"):
    """(n, 36, 36, 2) to softmax (n, 5): what the published networks do without, padding to one side before all.

    first: name of the first convolution.
    """
    layers = keras.layers
    image = keras.Input((36, 36, 2))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name=first)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(max_value=6.0)(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2)(x)
    x = layers.LeakyReLU()(x)
    x = layers.BatchNormalization()(x)
    side = layers.AveragePooling2D(2, strides=2, padding="same")(x)
    side = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="elu")(side)
    side = layers.Cropping2D(((0, 1), (1, 0)))(side)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Cropping2D(((1, 0), (0, 1)))(x)
    x = layers.Concatenate()([x, side])
    inner = keras.Sequential(
        [keras.Input((9, 9, 22)), layers.Conv2D(8, 1, activation="swish"), layers.Conv2D(8, 3, dilation_rate=2)], name="inner"
    )
    inner.layers[-1].trainable = False
    x = inner(x)
    gates = layers.GlobalAveragePooling2D()(x)
    gates = layers.Reshape((1, 1, 8))(gates)
    gates = layers.Conv2D(8, 1, activation="sigmoid")(gates)
    x = layers.Multiply()([x, gates])
    x = layers.Flatten()(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(12, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(image, layers.Softmax()(layers.Dense(5)(x)))


def small_unet(keras, outputs=2):
    """(n, 32, 32, 1) to sigmoid (n, 32, 32, outputs)."""
    layers = keras.layers
    image = keras.Input((32, 32, 1))
    top = layers.Conv2D(8, 3, activation="relu", padding="same", name="top")(image)
    low = layers.Conv2D(16, 3, strides=2, padding="same", name="low")(layers.SpatialDropout2D(0.1, name="drop")(top))
    low = layers.Activation("relu", name="low_relu")(layers.BatchNormalization(name="low_bn")(low))
    up = layers.Conv2DTranspose(8, 2, strides=2, name="up")(low)
    x = layers.Add(name="skip")([up, top])
    return keras.Model(image, layers.Conv2D(outputs, 1, activation="sigmoid", name="head")(x))


def settle(model, seed=0):
    """Give every weight a value of its own, of the size that training leaves: no normalisation is idle, no bias zero."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        role, shape = variable.name.split("/")[-1].split(":")[0], tuple(variable.shape)
        if "kernel" in role:
            value = rng.normal(0.0, np.sqrt(1.5 / max(1, np.prod(shape[:-1]))), shape)
        elif role in ("gamma", "moving_variance"):
            value = rng.uniform(0.6, 1.2, shape)
        else:
            value = rng.normal(0.0, 0.1, shape)
        variable.assign(value.astype(np.float32))
    # answers between 0 and 1: at the ends a sigmoid hides what differs
    head = next(layer for layer in reversed(model.layers) if layer.weights).weights[0]
    head.assign(head.numpy() * 0.1)
    return model


def pixels(model, count=2, scale=255.0, seed=1):
    """Images of the size that the model takes, 0 to `scale`."""
    _, height, width, channels = model.input_shape
    return (np.random.default_rng(seed).uniform(0.0, 1.0, (count, height, width, channels)) * scale).astype(np.float32)


def write_answer(model, path, scale=255.0):
    """Images and what the model answers to them, as `path`.npz."""
    x = pixels(model, scale=scale)
    np.savez(f"{path}.npz", x=x, y=np.asarray(model(x, training=False)))


def write_tf_keras(folder):
    """All files of TF-Keras 2, in one folder."""
    import tf_keras as keras

    builders = runpy.run_path(str(BUILDERS))
    keras.backend.clear_session()
    rust = settle(builders["rust_cls"](keras, 3))
    rust.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    write_answer(rust, folder / "rust-cls")
    rust.save(folder / "rust-cls.h5")
    rust.save(folder / "rust-cls.keras")
    rust.save(folder / "rust-cls", save_format="tf")

    odd = settle(uncommon_layers(keras, first="block1/conv.1"))  # a name that Keras 3 does not allow
    write_answer(odd, folder / "uncommon")
    odd.save(folder / "uncommon.h5")
    odd.save(folder / "uncommon.keras")
    odd.save(folder / "uncommon", save_format="tf")

    write_unreadable(keras, folder)

    unet = settle(builders["severstal_unet"](keras, 4))
    write_answer(unet, folder / "severstal-unet", 1.0)
    (folder / "severstal-unet.json").write_text(unet.to_json())
    unet.save_weights(folder / "severstal-unet.hdf5")
    unet.save_weights(folder / "severstal-unet-3.weights.h5")

    gate = settle(builders["severstal_gate"](keras, 1))
    write_answer(gate, folder / "severstal-gate", 1.0)
    (folder / "severstal-gate.json").write_text(gate.to_json())
    gate.save_weights(folder / "severstal-gate.hdf5")

    coating = settle(builders["coating_unet"](keras, 1))
    coating.compile("adam", "binary_crossentropy")
    write_answer(coating, folder / "coating-unet", 1.0)
    coating.save(folder / "coating-unet.h5")


def write_unreadable(keras, folder):
    """Models of TF-Keras 2 that Keras 3 cannot take as they are."""

    class OwnModel(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(1, 1)

        def call(self, x):
            return self.conv(x)

    own = OwnModel()
    own(np.zeros((1, 8, 8, 1), np.float32))
    own.save(folder / "own-model", save_format="tf")
    image = keras.Input((8, 8, 1))
    keras.Model(image, keras.layers.Conv2D(1, 1)(image / 255.0)).save(folder / "operation.h5")
    keras.Model(image, keras.layers.Conv2D(1, 1, activation="hard_sigmoid", name="gate")(image)).save(
        folder / "other-function.h5"
    )


def write_keras_3_export(folder):
    """A SavedModel as Keras 3 exports it for serving."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    model = settle(small_unet(keras))
    write_answer(model, folder / "exported", 1.0)
    model.export(folder / "exported", verbose=False)


if __name__ == "__main__":
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    destination = Path(sys.argv[1])
    write_tf_keras(destination)
    write_keras_3_export(destination)
