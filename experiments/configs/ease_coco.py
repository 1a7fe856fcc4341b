"""EASE and federated baselines on COCO captions: a client, pictures of a client, or a theme leaves.

Command:   python -m experiments.run --config=experiments/configs/ease_coco.py \
               --config.data_dir=DIR --config.federation.backbone.weights=ViT-B-32.pt \
               --workdir=runs/ease_coco
           DIR holds Karpathy's list and the pictures, the weights are OpenAI's CLIP. Modes, joined
           by commas: `l14` (ViT-L/14), `sample` or `concept` instead of `client`, and `:smoke`, a
           tiny network on generated files of that layout.
Task:      pictures with about five captions each, dealt to 8 clients by picture, Dirichlet(0.5)
           over 20 themes: k-means over tf-idf vectors of the captions, for there are no classes
           (ours). LoRA of rank 8 on queries and values of a frozen CLIP.
Protocol:  30 rounds of one local epoch; 5 of unlearning and 5 of recovery; nothing tuned (ours; the
           abstract gives no recipe).
Expect:    no figures are published. Not run: data and weights were not at hand.
Hardware:  accelerators; `:smoke` some minutes on 2 CPU cores.
"""

from experiments.configs import _ease_web

MODES = ('', 'l14', 'sample', 'concept', 'l14,sample', 'l14,concept', 'smoke', 'sample,smoke',
         'concept,smoke')

def get_config(mode: str = ''):
  """`mode` is one of `MODES`."""
  return _ease_web.get(mode, name='ease_coco', data='coco_captions')
