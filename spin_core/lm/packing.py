"""Answers laid out without padding, their common prompt computed once.

One micro-batch is one row of T tokens, a sequence of *trees* `prompt | answer 1 | answer 2 …`. Every branch continues the
prompt's positions and sees the prompt and itself, so its log-probs are those of prompt + answer alone. A branch's last token
is only ever a target and is left out of the input: a one-token answer adds nothing.

Axes: T tokens, G blocks of attention, N answer tokens, S distinct answers, B answers asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spin_core.lm.meter import Work


@dataclass(frozen=True)
class Packed:
    """Trees of a micro-batch, one after the other."""

    ids_T: Tensor  # int64
    position_T: Tensor  # int64, the prompt's 0…P−1, each answer from P on
    block_G3: Tensor  # int64: start of the tree, start and end of the queries (a prompt starts where its tree does)
    prompt_G: Tensor  # int64, tokens of the block's prompt
    source_N: Tensor  # int64, index in T of the token that predicts an answer token
    target_N: Tensor  # int64, the answer token's id
    answer_N: Tensor  # int64, which of S it belongs to
    pick_B: Tensor  # int64, which of S is the answer asked for

    def to(self, device: torch.device) -> Packed:
        """The same batch on a device."""
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def blocks(self) -> list[tuple[int, int, int, int]]:
        """Each block's start of the tree, start and end of the queries, tokens of the prompt: what attention goes by."""
        return [(*block, size) for block, size in zip(self.block_G3.tolist(), self.prompt_G.tolist(), strict=True)]

    def work(self) -> Work:
        """What it asks of the model."""
        tree_G, start_G, end_G = self.block_G3.unbind(1)
        own_G = end_G - start_G
        attended_G = own_G * (own_G + 1) // 2 + torch.where(start_G == tree_G, 0, own_G * self.prompt_G)
        return Work(len(self.ids_T), int(attended_G.sum()), len(self.source_N))


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Packed:
    """Lays out B prompts [P ≥ 1] and answers [R ≥ 1]: equal prompts form one tree, equal answers of a tree one branch."""
    trees: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    pick: list[int] = []
    count = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        branches = trees.setdefault(tuple(prompt), {})
        if tuple(answer) not in branches:
            branches[tuple(answer)] = count
            count += 1
        pick.append(branches[tuple(answer)])
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[tuple[int, int, int]] = []
    prompt_sizes: list[int] = []
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    for prompt_ids, branches in trees.items():
        tree, size = len(ids), len(prompt_ids)
        ids += prompt_ids
        positions += range(size)
        blocks.append((tree, tree, len(ids)))
        prompt_sizes.append(size)
        for answer_ids, number in branches.items():
            start = len(ids)
            source += [tree + size - 1, *range(start, start + len(answer_ids) - 1)]
            target += answer_ids
            owner += [number] * len(answer_ids)
            if len(answer_ids) > 1:
                ids += answer_ids[:-1]
                positions += range(size, size + len(answer_ids) - 1)
                blocks.append((tree, start, len(ids)))
                prompt_sizes.append(size)
    return Packed(*map(torch.tensor, (ids, positions, blocks, prompt_sizes, source, target, owner, pick)))
