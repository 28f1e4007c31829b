"""Codebooks of sub-spaces fitted to a layer's responses: each step is the exact optimum of its block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class SubSpaces:
    """min over D and B of sum_n |(W - D B) x_n|^2 = tr (W - D B) H (W - D B)^T, by blocks (Wu et al. 2016).

    A row of W lies in memory as channels x places; a run of `width` channels at one place is a piece of it, and all
    pieces of the same channels, at whatever place, in whatever row, are taken from one codebook. `move_codebook` finds
    the best codebook of a run for all else as it is, `move_codes` the best codes of a piece.

    Attributes:
        gram: H, (groups, columns, columns), float64.
        codebook: (runs, k, width), float64; the last run may be narrower, the rest of its codewords is not used.
        codes: (groups, rows, runs, places), int64.
        wrong: W - D B, (groups, rows, columns), float64.
        pull: (W - D B) H.
    """

    gram: Tensor
    codebook: Tensor
    codes: Tensor
    wrong: Tensor
    pull: Tensor

    @classmethod
    def of(cls, rows: Tensor, gram: Tensor, codebook: Tensor, codes: Tensor) -> SubSpaces:
        """Returns the state for W = rows, (groups, rows, columns)."""
        wrong = rows - decoded(codebook, codes, rows.shape[2] // codes.shape[3])
        return cls(gram, codebook, codes, wrong, wrong @ gram)

    @property
    def objective(self) -> float:
        """The squared error of the responses."""
        return float((self.wrong * self.pull).sum())

    def columns(self, run: int) -> Tensor:
        """Returns the columns of a run, (its width, places)."""
        width, places = self.codebook.shape[2], self.codes.shape[3]
        channels = self.gram.shape[1] // places
        every = torch.arange(channels * places, device=self.gram.device).reshape(channels, places)
        return every[run * width : (run + 1) * width]

    def move_codebook(self, run: int) -> None:
        """Finds the codewords of a run by least squares; those that nobody uses, or that no input tells, stay."""
        columns = self.columns(run)
        width, places, k = *columns.shape, self.codebook.shape[1]
        used = torch.nn.functional.one_hot(self.codes[:, :, run], k).to(self.gram.dtype)  # groups, rows, places, k
        wanted = self.gram.new_zeros(k, width)
        for place in range(places):
            wanted += torch.einsum("gnk,gnw->kw", used[:, :, place], self.pull[:, :, columns[:, place]])
        # A step that costs a little keeps the system regular, and still never makes the error larger.
        lift = 1e-9 * float(self.gram.diagonal(dim1=1, dim2=2).mean()) * used.shape[1] + 1e-30
        if places == 1:
            blocks = self.gram[:, columns[:, 0, None], columns[:, 0]]
            normal = torch.einsum("gk,gij->kij", used[:, :, 0].sum(1), blocks)
            normal.diagonal(dim1=1, dim2=2).add_(lift)
            step = torch.linalg.solve(normal, wanted[:, :, None])[:, :, 0]
        else:
            whole = self.gram.new_zeros(k, width, k, width)
            for one in range(places):
                for other in range(places):
                    both = used[:, :, one].transpose(1, 2) @ used[:, :, other]
                    blocks = self.gram[:, columns[:, one, None], columns[:, other]]
                    whole += torch.einsum("gkl,gij->kilj", both, blocks)
            normal = whole.reshape(k * width, k * width)
            normal.diagonal().add_(lift)
            step = torch.linalg.solve(normal, wanted.flatten()).reshape(k, width)
        self.codebook[run, :, :width] += step
        for place in range(places):
            self._changed(columns[:, place], step[self.codes[:, :, run, place]])

    def move_codes(self, run: int, place: int) -> None:
        """Finds the best codeword for one piece of every row; a code changes only where that helps."""
        columns = self.columns(run)[:, place]
        words = self.codebook[run, :, : len(columns)]
        block = self.gram[:, columns[:, None], columns]
        now = words[self.codes[:, :, run, place]]
        turned = now @ block
        # What the objective changes by: (d - now)^T H (d - now) - 2 (d - now)^T pull.
        own = torch.einsum("ki,gij,kj->gk", words, block, words)
        pull = self.pull[:, :, columns]
        change = own[:, None] - 2 * (turned + pull) @ words.T
        before = (turned * now).sum(2) - 2 * ((turned + pull) * now).sum(2)
        best = change.min(2)
        moved = torch.where(best.values < before, best.indices, self.codes[:, :, run, place])
        self.codes[:, :, run, place] = moved
        self._changed(columns, words[moved] - now)

    def _changed(self, columns: Tensor, step: Tensor) -> None:
        self.wrong[:, :, columns] -= step
        self.pull -= step @ self.gram[:, columns]

    def settle(self, rounds: int, gain: float = 1e-3) -> None:
        """Goes through all blocks in turn until a round gains less than a part of the error."""
        before = self.objective
        for _ in range(rounds):
            for run in range(self.codes.shape[2]):
                self.move_codebook(run)
                for place in range(self.codes.shape[3]):
                    self.move_codes(run, place)
            after = self.objective
            if after > (1 - gain) * before:
                break
            before = after


def decoded(codebook: Tensor, codes: Tensor, channels: int) -> Tensor:
    """Returns D B, (groups, rows, channels x places); differentiable in the codebook.

    Args:
        codebook: (runs, k, width).
        codes: (groups, rows, runs, places), integers.
        channels: of a row.
    """
    runs, k, width = codebook.shape
    places = codes.shape[3]
    start = torch.arange(runs, device=codes.device)[:, None] * k
    pieces = codebook.reshape(runs * k, width).index_select(0, (codes.long() + start).flatten())
    pieces = pieces.reshape(*codes.shape, width).transpose(3, 4).reshape(*codes.shape[:2], runs * width, places)
    return pieces[:, :, :channels].reshape(*codes.shape[:2], channels * places)
