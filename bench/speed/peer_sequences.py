"""SASRec of RecBole or RecTools, trained epoch by epoch: a contestant in a process of its own.

    python peer_sequences.py recbole|rectools FOLDER EPOCHS

FOLDER has `rec/rec.inter` (user, item and time of every interaction but each user's last, in RecBole's format) and
`valid.npz` (`sequences [U, L]`, oldest first and 0 behind, and `targets [U]`, of the rows that are validated). After
each epoch a line of JSON says the processor seconds of its training and how many pairs of history and next item it
learned from, and `ranksEPOCH.npy` has the rank of each target among all items.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")
Scores = Callable[[list[np.ndarray]], torch.Tensor]
DIM, LAYERS, HEADS, DROPOUT, LENGTH, BATCH, RATE = 64, 2, 2, 0.5, 10, 1024, 1e-3


class Measure:
    """Writes after each epoch what it took, and the ranks that a model gives the targets of the validated rows."""

    def __init__(self, folder: Path) -> None:
        valid = np.load(folder / "valid.npz")
        self.folder, self.epoch = folder, 0
        self.sequences, self.targets = valid["sequences"], valid["targets"]

    def __call__(self, seconds: float, rows: int, numbers: dict[int, int], scores: Scores) -> None:
        """`numbers` says by our item its number among the peer's; `scores` gives sequences of those `[B, V]`."""
        known = np.zeros(int(max(self.sequences.max(), self.targets.max())) + 1, np.int64)
        for item, number in numbers.items():
            known[item] = number
        ranks = []
        with torch.no_grad():
            for part in np.array_split(np.arange(len(self.targets)), 16):
                found = scores([kept[kept > 0] for kept in known[self.sequences[part]]]).clone()
                found[:, 0] = -torch.inf
                target = torch.from_numpy(known[self.targets[part]])
                rank = (found >= found.gather(1, target.unsqueeze(1))).sum(1)
                ranks.append(torch.where(target > 0, rank, 10**9))
        self.epoch += 1
        np.save(self.folder / f"ranks{self.epoch}.npy", torch.cat(ranks).numpy())
        sys.stdout.write(json.dumps({"seconds": seconds, "rows": rows, "epoch": self.epoch}) + "\n")
        sys.stdout.flush()


def recbole(folder: Path, epochs: int) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    sys.argv = sys.argv[:1]  # RecBole reads the command line
    # Without each user's last interaction, "valid_only" leaves the same training and validation rows as ours.
    config = Config(
        model=SASRec,
        dataset="rec",
        config_dict={
            "data_path": str(folder), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": LENGTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_size": DIM,
            "inner_size": 4 * DIM, "hidden_dropout_prob": DROPOUT, "attn_dropout_prob": DROPOUT, "loss_type": "CE",
            "train_neg_sample_args": None, "train_batch_size": BATCH, "eval_batch_size": 4096, "learning_rate": RATE,
            "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full", "group_by": "user"},
            "metrics": ["NDCG"], "topk": [10], "valid_metric": "NDCG@10", "use_gpu": False, "show_progress": False,
            "state": "ERROR", "checkpoint_dir": str(folder / "saved"), "reproducibility": True, "seed": 0,
        },
    )  # fmt: skip
    init_seed(0, reproducibility=True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    measure = Measure(folder)
    tokens = dataset.field2token_id["item_id"]
    numbers = {int(token): number for token, number in tokens.items() if number > 0}

    def scores(histories: list[np.ndarray]) -> torch.Tensor:
        filled = torch.zeros(len(histories), LENGTH, dtype=torch.int64)
        for row, kept in enumerate(histories):
            filled[row, : len(kept)] = torch.from_numpy(kept)
        return model(filled, torch.tensor([len(kept) for kept in histories])) @ model.item_embedding.weight.T

    for epoch in range(epochs):
        model.train()
        start = time.process_time()
        trainer._train_epoch(train, epoch)
        seconds = time.process_time() - start
        model.eval()
        measure(seconds, len(train.dataset), numbers, scores)


def rectools(folder: Path, epochs: int) -> None:
    import pandas as pd
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    frame = pd.read_csv(folder / "rec" / "rec.inter", sep="\t")
    frame.columns = [Columns.User, Columns.Item, Columns.Datetime]
    frame = frame.sort_values([Columns.User, Columns.Datetime], kind="stable")
    frame = frame[frame.groupby(Columns.User).cumcount(ascending=False) > 0]  # without the validation items
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    frame[Columns.Weight] = 1.0
    # A session is trained at all its positions at once, in one pass; longer ones lose what is older.
    rows = int(np.minimum(frame.groupby(Columns.User).size() - 1, LENGTH).sum())
    sessions = max(int(BATCH * frame[Columns.User].nunique() / rows), 1)
    measure = Measure(folder)

    class Clock(Callback):
        start = 0.0

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.start = time.process_time()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seconds = time.process_time() - self.start
            external = model.data_preparator.item_id_map.external_ids
            numbers = {int(item): number for number, item in enumerate(external) if item != "PAD"}
            network = module.torch_model.eval()
            with torch.no_grad():
                items = network.item_model.get_all_embeddings()

            def scores(histories: list[np.ndarray]) -> torch.Tensor:
                filled = torch.zeros(len(histories), LENGTH, dtype=torch.int64)
                for row, kept in enumerate(histories):
                    filled[row, LENGTH - len(kept) :] = torch.from_numpy(kept)
                return network.encode_sessions({"x": filled}, items)[:, -1] @ items.T

            measure(seconds, rows, numbers, scores)
            network.train()

    seed_everything(0)
    model = SASRecModel(
        n_blocks=LAYERS,
        n_heads=HEADS,
        n_factors=DIM,
        dropout_rate=DROPOUT,
        session_max_len=LENGTH,
        loss="softmax",
        lr=RATE,
        batch_size=sessions,
        train_min_user_interactions=2,
        get_trainer_func=lambda: Trainer(
            max_epochs=epochs,
            min_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
            default_root_dir=str(folder),
        ),
    )
    model.fit(Dataset.construct(frame))


def main() -> None:
    name, folder, epochs = sys.argv[1:]
    torch.set_num_threads(1)
    {"recbole": recbole, "rectools": rectools}[name](Path(folder), int(epochs))


if __name__ == "__main__":
    main()
