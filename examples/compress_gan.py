r"""Train, prune or evaluate a GAN with the flags of Distiller's compress_classifier.

::

    python examples/compress_gan.py digits -a dcgan --image-size 32 --width 32 --epochs 12 -n dense
    python examples/compress_gan.py digits -a dcgan --compress dcgan/recommended_75 \
        --exp-load-weights-from logs/dense -n sparse
    python examples/compress_gan.py digits -a dcgan -e --resume-from logs/sparse

``digits`` stands for the handwritten digits that come with scikit-learn; any folder of pictures or of MNIST's
idx.gz files goes in its place. ``sgc`` offers the same as subcommands.
"""

import sys

from sgc_distiller.app import compress_gan

if __name__ == "__main__":
    sys.exit(compress_gan())
