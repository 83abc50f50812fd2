# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

r"""Ratings of items by users with a known truth, made like those that are collected.

User u likes item i by the score :math:`s_{ui} = m_i + a_u + x_u^\top y_i`; the rating is an ordinal probit
of it, :math:`p(r \le k) = \Phi(t_k - s_{ui})`. Few pairs are rated: popular items and busy users more
often, and what is liked more often than what is not (``selection``): entries are *not quite* missing at
random.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["NUM_STATES", "RatingModel", "Ratings", "make_ratings"]

#: Ratings are 0 to 4 inside of the program, one to five stars outside.
NUM_STATES = 5
#: Thresholds of the ordinal probit.
_THRESHOLDS = (-1.6, -0.6, 0.5, 1.6)
_CHUNK_USERS = 128


@dataclass(frozen=True)
class RatingModel:
    """The truth.

    :param Tensor quality: m, shape ``(items,)``.
    :param Tensor factors: y, shape ``(items, rank)``; users have standard normal ones.
    :param float mildness: standard deviation of a.
    """

    quality: Tensor
    factors: Tensor
    mildness: float

    def draw_users(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """a and x of some users."""
        a = self.mildness * torch.randn(count, generator=generator)
        return a, torch.randn(count, self.factors.shape[1], generator=generator)

    def scores(self, a: Tensor, x: Tensor) -> Tensor:
        """s, shape ``(users, items)``."""
        return self.quality + a.unsqueeze(-1) + x @ self.factors.T

    @staticmethod
    def probabilities(scores: Tensor) -> Tensor:
        """p(r | s), shape ``scores.shape + (5,)``."""
        below = torch.special.ndtr(scores.new_tensor(_THRESHOLDS) - scores.unsqueeze(-1))
        ends = torch.cat(
            [torch.zeros_like(below[..., :1]), below, torch.ones_like(below[..., :1])], -1
        )
        return ends.diff(dim=-1).clamp(min=1e-12)

    def predict(
        self, known: "Ratings", user: Tensor, item: Tensor, draws: int, generator: Generator
    ) -> Tensor:
        """p(r | the user's known ratings) of this model, by importance sampling from the users' prior.

        No model that sees ratings of the users, and not why they were given, can do better on average.

        :param Ratings known: what is known.
        :param Tensor user: users that are asked about, shape ``(questions,)``.
        :param Tensor item: items, shape ``(questions,)``.
        :param int draws: draws of a and x.
        :returns: shape ``(questions, 5)``.
        """
        table = self.probabilities(self.scores(*self.draw_users(draws, generator)))
        log_table = table.log().flatten(1)
        one_hot, mask = known.one_hot(), known.mask()
        answer = torch.empty(len(user), NUM_STATES)
        for start in range(0, known.num_users, _CHUNK_USERS):
            chunk = slice(start, start + _CHUNK_USERS)
            rows = one_hot[chunk] * mask[chunk]
            weight = torch.softmax(rows.float() @ log_table.T, -1)
            mine = (user >= start) & (user < start + _CHUNK_USERS)
            answer[mine] = (weight @ table.flatten(1)).unflatten(-1, (-1, NUM_STATES))[
                user[mine] - start, item[mine]
            ]
        return answer


@dataclass(frozen=True)
class Ratings:
    """Some ratings, one a pair of user and item at most.

    :param Tensor user: shape ``(ratings,)``.
    :param Tensor item: shape ``(ratings,)``.
    :param Tensor value: 0 to 4, shape ``(ratings,)``.
    :param int num_users: number of users.
    :param int num_items: number of items.
    """

    user: Tensor
    item: Tensor
    value: Tensor
    num_users: int
    num_items: int

    def __len__(self) -> int:
        return len(self.value)

    def select(self, index: Tensor) -> "Ratings":
        """Some of them."""
        parts = self.user[index], self.item[index], self.value[index]
        return Ratings(*parts, self.num_users, self.num_items)

    def split(self, *shares: float, generator: Generator) -> "list[Ratings]":
        """Random disjoint parts, the rest last."""
        order = torch.randperm(len(self), generator=generator)
        sizes = [int(share * len(self)) for share in shares]
        return [self.select(part) for part in order.split([*sizes, len(self) - sum(sizes)])]

    def one_hot(self) -> Tensor:
        """Rows of a machine of one-hot groups, bytes of shape ``(users, 5 items)``; where nothing is known
        they are zero."""
        rows = torch.zeros(self.num_users, self.num_items, NUM_STATES, dtype=torch.uint8)
        rows[self.user, self.item, self.value] = 1
        return rows.flatten(1)

    def mask(self) -> Tensor:
        """Which entries of :meth:`one_hot` are known, boolean."""
        known = torch.zeros(self.num_users, self.num_items, dtype=torch.bool)
        known[self.user, self.item] = True
        return known.repeat_interleave(NUM_STATES, 1)


def make_ratings(
    num_users: int,
    num_items: int,
    *,
    rank: int = 4,
    density: float = 0.05,
    selection: float = 0.5,
    seed: int = 0,
) -> tuple[RatingModel, Ratings, Tensor]:
    """The truth, the ratings that were given, and the true p(r) of every pair.

    :param int num_users: number of users.
    :param int num_items: number of items.
    :param int rank: length of x and y.
    :param float density: share of the pairs that are rated.
    :param float selection: how much more likely a pair is rated for each unit of its score.
    :param int seed: of all random numbers.
    :returns: the model, the ratings, and probabilities of shape ``(users, items, 5)``.
    """
    generator = Generator().manual_seed(seed)
    model = RatingModel(
        0.5 * torch.randn(num_items, generator=generator),
        torch.randn(num_items, rank, generator=generator) * (1.2 / rank**0.5),
        0.4,
    )
    scores = model.scores(*model.draw_users(num_users, generator))
    probabilities = model.probabilities(scores)
    popularity = torch.randn(num_items, generator=generator)
    activity = 0.7 * torch.randn(num_users, 1, generator=generator)
    rate = (popularity + activity + selection * scores).exp()
    for _ in range(20):  # rates above one are cut off, which leaves too few
        rate = (rate * (density / rate.clamp(max=0.9).mean())).clamp(max=0.9)
    user, item = (torch.rand(rate.shape, generator=generator) < rate).nonzero(as_tuple=True)
    value = torch.multinomial(probabilities[user, item], 1, generator=generator).squeeze(-1)
    return model, Ratings(user, item, value, num_users, num_items), probabilities
