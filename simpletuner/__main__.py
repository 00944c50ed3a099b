"""``python -m simpletuner``, and so ``torchrun … -m simpletuner train``."""

from simpletuner.cli.app import main

if __name__ == "__main__":
    main()
