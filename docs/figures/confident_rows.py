"""Draws docs/figures/confident_rows.svg: what a confident row loses, by optax and by jxent.

    python docs/figures/confident_rows.py [OUTPUT]

The logits are [gap, 0, 0] and the label is 0; the truth is computed in float64, the losses in float32.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import jxent

matplotlib.use("svg")
import matplotlib.pyplot as plt

GAPS = np.arange(0, 81)
LOSSES = {"optax": optax.softmax_cross_entropy_with_integer_labels, "jxent": jxent.softmax_cross_entropy}
COLOURS = {"optax": "#c44e52", "jxent": "#2b6cb0"}
NONE = 1e-9  # where an error of 0 is drawn


def errors(loss_fn):
    """Relative errors of the loss and of its derivative by the label's logit, at every gap."""
    rows = np.zeros((len(GAPS), 3))
    rows[:, 0] = GAPS
    value, grad = jax.vmap(jax.value_and_grad(lambda x: loss_fn(x, jnp.array(0))))(jnp.asarray(rows, jnp.float32))
    value, grad = np.asarray(value, np.float64), np.asarray(grad, np.float64)
    loss = np.log1p(2 * np.exp(-GAPS))
    return np.abs(value / loss - 1), np.abs(grad[:, 0] / np.expm1(-loss) - 1)


def draw(path):
    plt.rcParams.update(
        {"svg.hashsalt": "jxent", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for name, loss_fn in LOSSES.items():
        for panel, error in zip(panels, errors(loss_fn), strict=True):
            panel.semilogy(GAPS, np.maximum(error, NONE), "o", color=COLOURS[name], label=name, markersize=3)
    for panel, title in zip(panels, ("loss", "gradient at the label"), strict=True):
        panel.set_title(title)
        panel.set_xlabel("label's logit − the others")
        panel.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        panel.set_ylim(NONE / 2, 12)
        panel.set_yticks([NONE, 1e-7, 1e-5, 1e-3, 1e-1], ["0", "$10^{-7}$", "$10^{-5}$", "$10^{-3}$", "$10^{-1}$"])
        panel.minorticks_off()
    panels[0].set_ylabel("relative error (float32)")
    panels[0].text(80, 2, "nothing left", ha="right", color="0.35")
    panels[0].legend(frameon=False, loc="center right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
