"""Training steps of the methods in PyTorch, written from the same papers: our steps' twins.

Each factory takes a network of `twins.py` that is already loaded and returns a step; a step takes
pictures [B, C, H, W] and labels [B], changes the network and returns its loss as a float.
"""

import contextlib
import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Features:
  """A network whose call returns (logits, features): features are what the last layer reads."""

  def __init__(self, net: nn.Module):
    self.net = net
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    head.register_forward_pre_hook(self._keep)

  def _keep(self, module, args):
    del module
    self.features = args[0]

  def __call__(self, image):
    logits = self.net(image)
    return logits, self.features


@contextlib.contextmanager
def still_statistics(net: nn.Module):
  """Batch norms use batch statistics but do not move their running ones."""
  norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
  before = [norm.momentum for norm in norms]
  for norm in norms:
    norm.momentum = 0.0
  try:
    yield
  finally:
    for norm, momentum in zip(norms, before):
      norm.momentum = momentum


def sgd(net: nn.Module, *, learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.0):
  return torch.optim.SGD(net.parameters(), learning_rate, momentum, weight_decay=weight_decay)


def adam(net: nn.Module, *, learning_rate: float, weight_decay: float = 0.0):
  return torch.optim.Adam(net.parameters(), learning_rate, weight_decay=weight_decay)


def descend(tx: torch.optim.Optimizer, loss: torch.Tensor) -> float:
  """One step of the optimizer."""
  tx.zero_grad()
  loss.backward()
  tx.step()
  return loss.item()


def teacher_of(net: nn.Module) -> nn.Module:
  """A frozen copy in eval mode."""
  return copy.deepcopy(net).eval().requires_grad_(False)


def supervised(net, tx):
  """CE(y, f(x))."""
  net.train()

  def step(image, label):
    return descend(tx, functional.cross_entropy(net(image), label))

  return step


def neg_grad_plus(net, tx, *, alpha):
  """alpha CE(retain) - (1 - alpha) CE(forget), a forward pass for each."""
  net.train()

  def step(image, label, forget_image, forget_label):
    kept = functional.cross_entropy(net(image), label)
    gone = functional.cross_entropy(net(forget_image), forget_label)
    return descend(tx, alpha * kept - (1 - alpha) * gone)

  return step


def distillation(student, teacher, temperature):
  """T^2 KL(teacher || student), mean over records."""
  return temperature**2 * functional.kl_div(
      functional.log_softmax(student / temperature, 1),
      functional.log_softmax(teacher / temperature, 1), reduction='batchmean', log_target=True)


def scrub_max(net, tx, *, temperature):
  """-KD on the forget set."""
  teacher = teacher_of(net)
  net.train()

  def step(image, label):
    del label
    with torch.no_grad():
      wanted = teacher(image)
    return descend(tx, -distillation(net(image), wanted, temperature))

  return step


def scrub_min(net, tx, *, gamma, alpha, temperature):
  """gamma CE + alpha KD on retained data."""
  teacher = teacher_of(net)
  net.train()

  def step(image, label):
    with torch.no_grad():
      wanted = teacher(image)
    student = net(image)
    return descend(tx, gamma * functional.cross_entropy(student, label)
                   + alpha * distillation(student, wanted, temperature))

  return step


def bad_teacher(net, tx, *, incompetent, forget_weight):
  """KL to one of two teachers, over both parts of the batch in one forward pass."""
  competent, incompetent = teacher_of(net), teacher_of(incompetent)
  net.train()

  def step(image, label, forget_image, forget_label):
    del label, forget_label
    both = torch.cat([image, forget_image])
    with torch.no_grad():
      wanted = torch.cat([competent(both)[:len(image)], incompetent(both)[len(image):]])
    student = net(both)
    divergence = functional.kl_div(
        functional.log_softmax(student, 1), functional.log_softmax(wanted, 1), reduction='none',
        log_target=True).sum(1) / student.shape[1]
    kept, gone = divergence[:len(image)].mean(), divergence[len(image):].mean()
    return descend(tx, (1 - forget_weight) * kept + forget_weight * gone)

  return step


def random_label(net, tx):
  """CE with labels drawn at random, unless they are given."""
  net.train()

  def step(image, label, drawn=None):
    logits = net(image)
    if drawn is None:
      drawn = torch.randint_like(label, logits.shape[1])
    return descend(tx, functional.cross_entropy(logits, drawn))

  return step


def salun(net, tx, *, mask):
  """Random labels; gradients are masked and masked weights put back, as the release does."""
  before = [parameter.detach().clone() for parameter in net.parameters()]
  masks = [mask[name] for name, _ in net.named_parameters()]
  net.train()

  def step(image, label, drawn=None):
    logits = net(image)
    if drawn is None:
      drawn = torch.randint_like(label, logits.shape[1])
    loss = functional.cross_entropy(logits, drawn)
    tx.zero_grad()
    loss.backward()
    for parameter, one in zip(net.parameters(), masks):
      parameter.grad.mul_(one)
    tx.step()
    with torch.no_grad():
      for parameter, one, old in zip(net.parameters(), masks, before):
        parameter.copy_(torch.where(one > 0, parameter, old))
    return loss.item()

  return step


def sinkhorn_plan(cost, *, epsilon, max_iterations, threshold=1e-4):
  """Stabilised Sinkhorn between uniform weights, columns first; see losses/transport.py."""
  m, n = cost.shape
  log_a, log_b = -np.log(m), -np.log(n)
  scaled = -cost / epsilon
  f = cost.new_zeros(m)
  for _ in range(max_iterations):
    g = log_b - torch.logsumexp(scaled + f[:, None], 0)
    f = log_a - torch.logsumexp(scaled + g[None, :], 1)
    with torch.no_grad():
      column = torch.exp(scaled + f[:, None] + g[None, :]).sum(0)
      if (column - 1 / n).abs().sum() < threshold:
        break
  return torch.exp(scaled + f[:, None] + g[None, :])


def ot_distance(x, y, **kwargs):
  """<T, C> with the cosine cost."""
  cost = (1 - functional.normalize(x) @ functional.normalize(y).T).clamp(min=0)
  return (sinkhorn_plan(cost, **kwargs) * cost).sum()


def perturbed(net, image, label, forget_image, *, class_weight, perturb_steps, step_size,
              transport_weight, epsilon, max_iterations):
  """x* of DLFD's Eq. 3; input gradients only."""
  with torch.no_grad():
    _, forgotten = net(forget_image)
  for _ in range(perturb_steps):
    image = image.detach().requires_grad_(True)
    logits, features = net(image)
    objective = (transport_weight * ot_distance(features, forgotten, epsilon=epsilon,
                                                max_iterations=max_iterations)
                 - class_weight * functional.cross_entropy(logits, label))
    gradient, = torch.autograd.grad(objective, image)
    image = image + step_size * gradient.sign()
  return image.detach()


def dlfd(net, tx, *, steps, **settings):
  """Algorithm 1 of DLFD with its gate open: M ascents of retained pictures, then SGD on them."""
  both = Features(net)
  net.train()
  taken = 0

  def step(image, label, forget_image, forget_label, gate=True):
    del forget_label
    nonlocal taken
    if gate:
      with still_statistics(net):
        image = perturbed(both, image, label, forget_image,
                          class_weight=min(taken / (steps - 1), 1.0), **settings)
    taken += 1
    return descend(tx, functional.cross_entropy(net(image), label))

  return step


def squared_gradients(net, batches):
  """SSD's importance: the mean over batches of the squared gradient of the batch's mean loss."""
  net.eval()
  total = [torch.zeros_like(parameter) for parameter in net.parameters()]
  for image, label in batches:
    loss = functional.cross_entropy(net(image), label)
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    for kept, new in zip(total, gradient):
      kept.add_(new * new, alpha=1 / len(batches))
  return total
