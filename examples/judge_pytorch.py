"""Trains a PyTorch denoiser on digits and judges it by all estimators: python -m examples.judge_pytorch"""

import numpy as np
from sklearn.datasets import load_digits
import torch

from vdm import likelihood

test, train = np.split(load_digits().images[..., None].astype(np.uint8), [360])
layers = [torch.nn.Linear(65, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU()]
net = torch.nn.Sequential(*layers, torch.nn.Linear(256, 64))


def predict(z, gamma):
    h = torch.cat([z.flatten(1), gamma[:, None] / 10.0], dim=1)
    return z + net(h).reshape(z.shape)


def eps_hat(z, gamma, labels):
    with torch.no_grad():
        return predict(torch.tensor(z), torch.tensor(gamma)).numpy()


def vjp(z, gamma, labels, cotangent):
    z = torch.tensor(z, requires_grad=True)
    return torch.autograd.grad(predict(z, torch.tensor(gamma)), z, torch.tensor(cotangent))[0].numpy()


if __name__ == "__main__":
    torch.manual_seed(0)
    adam, data = torch.optim.Adam(net.parameters(), 1e-3), (2.0 * torch.tensor(train) + 1.0) / 17.0 - 1.0
    for _ in range(4000):
        gamma, x = 13.2 * torch.rand(128) - 8.2, data[torch.randint(len(data), (128,))]
        eps, weight = torch.randn(x.shape), gamma[:, None, None, None]
        z = torch.sigmoid(-weight).sqrt() * x + torch.sigmoid(weight).sqrt() * eps
        adam.zero_grad()
        (eps - predict(z, gamma)).square().mean().backward()
        adam.step()
    gamma = lambda t: 13.2 * t - 8.2
    print(likelihood.judge(likelihood.on_host(eps_hat, vjp), gamma, test, levels=17, train_images=train))
