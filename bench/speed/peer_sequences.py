"""SASRec of RecBole or RecTools, trained epoch by epoch: a contestant in a process of its own.

    python peer_sequences.py recbole|rectools FOLDER EPOCHS

FOLDER has `rec/rec.inter` (user, item and time of every interaction but each user's last, in RecBole's format) and
`valid.npz` (`sequences [U, L]`, oldest first and 0 behind, and `targets [U]`, of the rows that are validated). After
each epoch a line of JSON says the processor seconds of its training, how many pairs of history and next item it learned
from, and the validation's NDCG@10 in full ranking.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")
DIM, LAYERS, HEADS, DROPOUT, LENGTH, BATCH, RATE = 64, 2, 2, 0.5, 10, 1024, 1e-3


def tell(seconds: float, rows: int, ndcg: float) -> None:
    sys.stdout.write(json.dumps({"seconds": seconds, "rows": rows, "ndcg": ndcg}) + "\n")
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
    train, valid, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    for epoch in range(epochs):
        start = time.process_time()
        trainer._train_epoch(train, epoch)
        seconds = time.process_time() - start
        found = trainer._valid_epoch(valid)[1]
        tell(seconds, len(train.dataset), float(found["ndcg@10"]))


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
    valid = np.load(folder / "valid.npz")
    sequences, targets = valid["sequences"], valid["targets"]

    class Measure(Callback):
        start = 0.0

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.start = time.process_time()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seconds = time.process_time() - self.start
            numbers = {
                item: at for at, item in enumerate(model.data_preparator.item_id_map.external_ids) if item != "PAD"
            }
            known = np.zeros(int(max(sequences.max(), targets.max())) + 1, np.int64)
            for item, at in numbers.items():
                known[int(item)] = at
            filled = np.zeros_like(sequences)
            for row, sequence in enumerate(sequences):
                kept = known[sequence[sequence > 0]]
                kept = kept[kept > 0]
                filled[row, LENGTH - len(kept) :] = kept
            network = module.torch_model.eval()
            with torch.no_grad():
                items = network.item_model.get_all_embeddings()
                ranks = []
                for part in np.array_split(np.arange(len(filled)), 16):
                    states = network.encode_sessions({"x": torch.from_numpy(filled[part])}, items)[:, -1]
                    scores = states @ items.T
                    scores[:, 0] = -torch.inf
                    target = torch.from_numpy(known[targets[part]])
                    own = scores.gather(1, target.unsqueeze(1))
                    rank = (scores >= own).sum(1)
                    ranks.append(torch.where(target > 0, rank, 10**9))
            network.train()
            rank = torch.cat(ranks).double()
            tell(seconds, rows, float(torch.where(rank <= 10, 1 / torch.log2(rank + 1), 0).mean()))

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
            callbacks=[Measure()],
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
