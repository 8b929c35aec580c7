"""The Keras networks of other projects, layer by layer, so that their checkpoints fit.

Every builder takes the Keras module, Keras 3 or TF-Keras 2, and `outputs`, the channels or values that the network answers with.
Layers have the names that the originals' have where those are known: Keras's own for the parts that come from
`keras.applications`. Nothing but Keras is needed here: the tests build the same networks where TF-Keras is and torch is not.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def rust_cls(keras: ModuleType, outputs: int) -> Any:
    """Rust or no rust: (n, 256, 256, 3), 0 to 255, to softmax (n, outputs)."""
    layers = keras.layers
    prepare = keras.Sequential([layers.Resizing(256, 256), layers.Rescaling(1.0 / 255.0)], name="resize_and_rescale")
    stack: list[Any] = [keras.Input((256, 256, 3)), prepare]
    for filters in (32, 64, 64, 64, 64, 64):
        stack += [layers.Conv2D(filters, (3, 3), activation="relu"), layers.MaxPooling2D((2, 2))]
    stack += [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(outputs, activation="softmax")]
    return keras.Sequential(stack)


def severstal_gate(keras: ModuleType, outputs: int) -> Any:
    """Whether a steel image has a defect: ResNet50, (n, 256, 256, 3), 0 to 1, to sigmoid (n, outputs)."""
    layers = keras.layers
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(256, 256, 3))
    x = layers.AveragePooling2D((4, 4))(base.output)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.Dropout(0.3)(x)
    return keras.Model(base.input, layers.Dense(outputs, activation="sigmoid")(x))


def severstal_unet(keras: ModuleType, outputs: int) -> Any:
    """Defects of steel, one channel a class: ResUNet, (n, 256, 256, 1), 0 to 1, to sigmoid (n, 256, 256, outputs)."""
    layers = keras.layers
    image = keras.Input((256, 256, 1))
    x = image
    for _ in range(2):
        # where the normalisation of the first stage stands is not said: behind the ReLU, as in the ResUNets of Keras tutorials
        x = layers.Conv2D(16, 3, activation="relu", padding="same", kernel_initializer="he_normal")(x)
        x = layers.BatchNormalization()(x)
    skips = [x]
    for filters in (32, 64, 128):
        skips.append(_residual_block(layers, layers.MaxPooling2D((2, 2))(skips[-1]), filters))
    x = _residual_block(layers, layers.MaxPooling2D((2, 2))(skips[-1]), 256)
    for filters, skip in zip((128, 64, 32, 16), reversed(skips), strict=True):
        x = layers.Concatenate()([layers.UpSampling2D((2, 2))(x), skip])
        x = _residual_block(layers, x, filters)
    head = layers.Conv2D(outputs, (1, 1), activation="sigmoid", padding="same", kernel_initializer="he_normal")
    return keras.Model(image, head(x))


def coating_unet(keras: ModuleType, outputs: int) -> Any:
    """Coating on metal: a U-Net on ResNet50, (n, 256, 256, 3), 0 to 1, to sigmoid (n, 256, 256, outputs)."""
    layers = keras.layers
    encoder = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(256, 256, 3))
    skips = ("conv4_block6_out", "conv3_block4_out", "conv2_block3_out", "conv1_relu", None)
    x = encoder.get_layer("conv5_block3_out").output
    for filters, skip in zip((512, 256, 128, 64, 32), skips, strict=True):
        x = layers.Conv2DTranspose(filters, (2, 2), strides=2, padding="same")(x)
        if skip:
            x = layers.Concatenate()([x, encoder.get_layer(skip).output])
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return keras.Model(encoder.input, layers.Conv2D(outputs, 1, activation="sigmoid")(x))


def _residual_block(layers: Any, x: Any, filters: int) -> Any:
    main = layers.Conv2D(filters, (1, 1), kernel_initializer="he_normal")(x)
    main = layers.BatchNormalization()(main)
    main = layers.Activation("relu")(main)
    main = layers.Conv2D(filters, (3, 3), padding="same", kernel_initializer="he_normal")(main)
    main = layers.BatchNormalization()(main)
    shortcut = layers.Conv2D(filters, (1, 1), kernel_initializer="he_normal")(x)
    shortcut = layers.BatchNormalization()(shortcut)
    return layers.Activation("relu")(layers.Add()([main, shortcut]))
