# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Other packages, each behind one function; those that are not installed are left out."""

import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["rbms_annealing", "rbms_trainer", "sklearn_trainer"]


def sklearn_trainer(data: Tensor, num_hidden: int, batch_size: int) -> Callable[[], None] | None:
    """One epoch of scikit-learn's BernoulliRBM, which is PCD-1; None if it is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.neural_network import BernoulliRBM

    rows = data.numpy()

    def epoch() -> None:
        model = BernoulliRBM(
            n_components=num_hidden, learning_rate=0.05, batch_size=batch_size, n_iter=1,
            random_state=0,
        )  # fmt: skip
        model.fit(rows)

    return epoch


def rbms_trainer(
    data: Tensor, num_hidden: int, batch_size: int, *, num_steps: int, persistent: bool
) -> Callable[[int], None] | None:
    """A function that trains for a number of updates with the package rbms; None if it is missing.

    The package reads its data set and writes its model within the same call, so that the time of an
    update has to be taken from calls of different lengths.
    """
    if importlib.util.find_spec("rbms") is None:
        return None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from rbms.dataset.dataset_class import RBMDataset
        from rbms.map_model import map_model
        from rbms.parser import default_args
        from rbms.training.pcd import train

    rows = data.numpy().astype(np.float32)
    count = len(rows)
    dataset = RBMDataset(
        data=rows,
        labels=np.zeros(count),
        weights=np.ones((count, 1), dtype=np.float32),
        names=np.arange(count).astype(str),
        dataset_name="benchmark",
        is_binary=True,
        device="cpu",
    )

    def run(num_updates: int) -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = {
                **default_args,
                "num_updates": num_updates + 1,
                "gibbs_steps": num_steps,
                "batch_size": batch_size,
                "num_chains": batch_size,
                "num_hiddens": num_hidden,
                "learning_rate": 0.05,
                "training_type": "pcd" if persistent else "cd",
                "filename": str(Path(folder) / "rbm.h5"),
                "no_center": True,
                "log": False,
                "overwrite": True,
                "restore": False,
                "train_size": 1.0,
                "test_size": None,
                "device": "cpu",
                "dtype": torch.float32,
            }
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                train(
                    train_dataset=dataset,
                    test_dataset=None,
                    model_type="BBRBM",
                    args=arguments,
                    dtype=torch.float32,
                    checkpoints=np.array([num_updates + 1]),
                    map_model=map_model,
                )

    return run


def rbms_annealing(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    num_chains: int,
    num_temperatures: int,
) -> Callable[[], float] | None:
    """Annealed importance sampling with the package rbms; None if it is missing."""
    if importlib.util.find_spec("rbms") is None:
        return None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.partition_function.ais import compute_partition_function_ais

    parameters = BBRBM(weight.clone(), visible_bias.clone(), hidden_bias.clone())
    return lambda: compute_partition_function_ais(num_chains, num_temperatures + 1, parameters)
