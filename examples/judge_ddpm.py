"""Trains a DDPM of 200 steps on the digits and judges it by all estimators: python -m examples.judge_ddpm"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from vdm import likelihood

test, train = np.split(load_digits().images[..., None].astype(np.uint8), [360])
betas = np.linspace(5e-4, 0.08, 200)
alphas, table = jnp.cumprod(1.0 - betas), likelihood.table_of_betas(betas)
net = nn.Sequential([nn.Dense(256), nn.silu, nn.Dense(256), nn.silu, nn.Dense(64)])


def predict(params, z, step):
    told = jnp.concatenate([z.reshape(len(z), -1), step[:, None] / 200.0], axis=1)
    return z + net.apply(params, told).reshape(z.shape)


def loss(params, key, x):
    of_step, of_eps = jax.random.split(key)
    step, eps = jax.random.randint(of_step, x.shape[:1], 0, 200), jax.random.normal(of_eps, x.shape)
    alpha = alphas[step][:, None, None, None]
    return jnp.mean((eps - predict(params, jnp.sqrt(alpha) * x + jnp.sqrt(1.0 - alpha) * eps, step)) ** 2)


if __name__ == "__main__":
    params, adam, data = net.init(jax.random.key(0), jnp.zeros((1, 65))), optax.adam(1e-3), train / 8.0 - 1.0

    def update(state, key):
        of_batch, of_loss = jax.random.split(key)
        x = jnp.asarray(data)[jax.random.randint(of_batch, (128,), 0, len(data))]
        changes, moments = adam.update(jax.grad(loss)(state[0], of_loss, x), state[1])
        return (optax.apply_updates(state[0], changes), moments), None

    keys = jax.random.split(jax.random.key(1), 10_000)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(update, state, keys))((params, adam.init(params)))
    eps_hat = lambda z, gamma, labels: predict(params, z, table.index(gamma))
    print(likelihood.judge(eps_hat, table, test, levels=17, data_range=(-1.0, 1.0), train_images=train))
