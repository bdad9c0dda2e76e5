"""Why a layer has no counterpart: said once, for every library, by the layer's name."""

import re

# The first pattern that the name begins with counts.
_REASONS = (
    (
        "(Sync|Lazy)?BatchNorm",
        "it mixes the examples of a batch, so that none has a gradient of its own",
    ),
    (
        "(Lazy)?InstanceNorm|LayerNorm|GroupNorm|RMSNorm|LocalResponseNorm|CrossMapLRN|LRN",
        "a normalisation is neither linear nor an activation that acts element by element",
    ),
    (
        "(Alpha|Feature)?(Alpha)?Dropout",
        "there is no dropout yet: with p = 0, or with the identity in its place, the rest converts",
    ),
    (
        "RNN|LSTM|GRU|.*Cell$|Bidirectional",
        "a recurrence is no chain of layers, each with weights of its own",
    ),
    (
        ".*Attention|Transformer",
        "attention multiplies activations with activations: no chain of linear maps",
    ),
    ("Embed", "it takes indices, where a network takes real numbers"),
    ("(Lazy)?ConvTranspose", "a transposed convolution has no counterpart"),
    ("ConvLocal", "weights of a position's own have no counterpart"),
    ("Lazy", "it has no weights yet: run the module once on an example"),
    ("PReLU", "its slope is a parameter, and a layer has no others than w and b"),
    ("RReLU", "its slope is random; in its place leaky_relu has a fixed one"),
    (
        "LogSoftmax|log_softmax",
        "leave it away, and give output=softmax with cost=cross_entropy, which is the same cost",
    ),
    ("Softm|AdaptiveLogSoftmax", "a softmax is an output only, and over all outputs"),
    ("Unflatten", "an example's shape is that of the input, channels last: give it as input"),
    (
        "GLU|Hardswish|Hardshrink|Softshrink|Tanhshrink|Threshold",
        "this activation has no counterpart; Activation.from_function makes one, by hand",
    ),
    (
        "FractionalMaxPool|MaxUnpool|LPPool|Pool",
        "a pooling is the largest or the mean of every window",
    ),
    ("Parametrized", "its weight is computed from others: remove the parametrization first"),
    ("SpectralNorm|WeightNorm", "its weight is computed from others: put in the weight itself"),
    (
        "PixelShuffle|PixelUnshuffle|ChannelShuffle|Upsampl|Fold|Unfold",
        "moving numbers about has no counterpart",
    ),
    ("Bilinear|Einsum|DenseGeneral|LinearGeneral|Shared", "this linear map has no counterpart"),
)


def why_not(kind: str) -> str:
    """The reason, or what was expected."""
    for pattern, reason in _REASONS:
        if re.match(pattern, kind):
            return reason
    return (
        "expected linear maps, activations and poolings in a chain: what else a module does, "
        "branches too, cannot be read from it; put its layers in a Sequential"
    )
