"""NCU on YFCC15M-R: 2 epochs of hardest negatives, 8 of unlearning, as in the paper and its release.

Command:   python -m experiments.unlearn_checkpoint --config=experiments/configs/ncu_yfcc15m_r.py \
               --config.data_dir=DIR --checkpoint=FILE --workdir=runs/ncu_yfcc15m_r [--row=ncu-release]
           DIR holds what img2dataset writes (tar shards or parquet), or NCU's CSV and its pictures.
           One command per host of a cluster, with --distributed.
Task:      DeCLIP-style ViT-B/32, text projection with bias; P = 0.1, gamma = 0.7,
           epsilon = 0.03, eight prompt vectors, AdamW 1e-4 / 3e-4 / 5e-5. The release changes
           negative captions by EDA, which the paper does not mention, so it is off here:
           --config.text.wordnet=DIR --config.text.eda="('replace','insert','swap','delete')".
Expect:    no figure of ours: not run on the real data. The paper's are in experiments/ncu_paper.py.
Hardware:  16 GPUs with 16 GB in the paper; `:smoke` takes a minute on 2 CPU cores.
"""

from experiments.configs import _web_pairs


def get_config(mode: str = ''):
  """`mode` is '' or 'smoke'."""
  return _web_pairs.get(mode, name='yfcc15m_r', layout='declip',
                        models={'': 'clip_vit_b_32'})
