# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A neural Boltzmann machine of Fashion-MNIST images given their class.

Trains, then reports what the paper (Lang, Loukianov & Fisher 2023) does not: log p(y | x) with log Z from
both sides, classification by Bayes' rule, quality of samples; and draws its figures. An interrupted run
goes on where it was. ``--preset paper`` is the paper's model and training.

    python examples/nbm_fashion_mnist.py                                  # spins, 64 hidden spins a class
    python examples/nbm_fashion_mnist.py --hidden 256 --steps 1 --chains 20
    python examples/nbm_fashion_mnist.py --visible gaussian --preset paper
    python examples/nbm_fashion_mnist.py --visible low-rank-gaussian --hidden 64 --rank 64
    PYRO_EBM_DATA=/path/to/data python examples/nbm_fashion_mnist.py --preset paper
    python examples/nbm_fashion_mnist.py --smoke
"""

from class_conditional import main, parse

if __name__ == "__main__":
    main(
        parse(
            "A neural Boltzmann machine of Fashion-MNIST images given their class.", "fashion-mnist"
        )
    )
