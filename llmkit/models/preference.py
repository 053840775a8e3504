"""Preference losses on a decoder-only model: of two answers the better one, or single answers that are good or bad.

With pi and ref the log-probabilities of an answer's tokens under the model and under the one that training started
from, summed (`mean` where divided by their number), c the chosen and r the rejected answer, s the logistic function:

    dpo    -log s(beta ((pi_c - ref_c) - (pi_r - ref_r)))                              arXiv:2305.18290, eq. 7
    ipo    ((pi_c - ref_c) - (pi_r - ref_r) - 1 / (2 beta))^2                          arXiv:2310.12036, eq. 17
    orpo   -mean_c - beta log s(log odds_c - log odds_r), odds = p / (1 - p), p = exp(mean)   arXiv:2403.07691, eq. 6
    simpo  -log s(beta (mean_c - mean_r) - gamma)                                      arXiv:2405.14734, eq. 6
    kto    1 - s(beta (pi - ref) - z), of a bad answer 1 - s(z - beta (pi - ref))      arXiv:2402.01306, eq. 8

kto's z is beta times max(0, pi' - ref') of another row's answer to the same prompt, without gradient. The paper
averages it over a micro-batch; here each sample has its own, so that the gradient does not depend on how samples are
grouped.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.models.lm import CausalLMModule
from llmkit.recipe.tasks import NEEDS_REFERENCE

SIMPO_GAMMA_RATIO = 0.5
"""gamma / beta, the middle of the range that the paper recommends."""


class PreferenceModule(nn.Module):
    """`forward(batch) -> {"loss": sum over samples}`. batch: input_ids, labels (2B, T), labels shifted, the B chosen
    (kto: own) answers first, then the B rejected (kto: mismatched) ones; reference (B, 2) log-probabilities; good (B,)
    for kto."""

    def __init__(self, model: CausalLMModule, loss: str, beta: float):
        super().__init__()
        self.lm = model
        self.loss = loss
        self.beta = beta

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.lm.model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.losses(batch)[0].sum()}

    def losses(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) loss and (B, 2) rewards of each sample."""
        sums, counts = self.answers(batch)
        first, second = sums.chunk(2)
        num_first, num_second = counts.chunk(2)
        reference = batch["reference"].to(sums.dtype)
        if self.loss in NEEDS_REFERENCE:
            scores = torch.stack([first, second], 1) - reference
        else:
            scores = torch.stack([first / num_first, second / num_second], 1)
        rewards = self.beta * scores.detach()
        gap, beta = scores[:, 0] - scores[:, 1], self.beta
        if self.loss == "dpo":
            return -F.logsigmoid(beta * gap), rewards
        if self.loss == "ipo":
            return (gap - 1 / (2 * beta)) ** 2, rewards
        if self.loss == "simpo":
            return -F.logsigmoid(beta * gap - SIMPO_GAMMA_RATIO * beta), rewards
        if self.loss == "orpo":
            odds = scores - torch.log1p(-torch.exp(scores).clamp(max=1 - 1e-7))
            return -scores[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1]), rewards
        z = beta * scores[:, 1].detach().clamp(min=0)
        signs = torch.where(batch["good"] > 0, 1.0, -1.0).to(sums.dtype)
        return 1 - torch.sigmoid(signs * (beta * scores[:, 0] - z)), rewards

    def answers(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) sum of log p over a row's supervised labels, and their number. The head is computed there alone."""
        lm, labels = self.lm, batch["labels"]
        keep = labels != IGNORE
        inputs = {"input_ids": batch["input_ids"]}
        states = lm.hidden(inputs) if lm.split_head else lm.logits(inputs)
        logits = lm.head(states[keep]) if lm.split_head else states[keep]
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        losses = F.cross_entropy(logits, labels[keep], reduction="none")
        rows = keep.nonzero()[:, 0]
        sums = torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add(0, rows, -losses)
        return sums, keep.sum(1)
