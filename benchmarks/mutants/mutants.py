"""The mutants: small errors in the mathematics, each with the tests that are to catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One error.

    Attributes:
        name: what is wrong.
        file: the source file, in ``lightning_proppo``.
        old: text that occurs in it once.
        new: what takes its place.
        tests: files below ``tests/lightning_proppo``, without ``test_`` and ``.py``.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *mutants: tuple[str, str, str, str]) -> tuple[Mutant, ...]:
    """Return mutants of one file: (name, old, new, names of tests apart from each other)."""
    return tuple(Mutant(name, file, old, new, tuple(t.split())) for name, old, new, t in mutants)


MUTANTS = (
    *_of(
        "mathematics/cotangents.py",
        (
            "LR's sign",
            "return losses.detach() / particles",
            "return -losses.detach() / particles",
            "closed_forms",
        ),
        (
            "mean over P - 1 particles",
            "return losses.detach() / particles",
            "return losses.detach() / (particles - 1)",
            "closed_forms",
        ),
        ("score of the scale: eps^2", "(noise * noise - 1)", "(noise * noise)", "closed_forms"),
        ("score of the location: eps s", "(noise / scale.", "(noise * scale.", "closed_forms"),
    ),
    *_of(
        "mathematics/baselines.py",
        ("no baseline", "(losses - mean) *", "losses *", "baselines"),
        ("mean of all, not of the others", "(particles / (particles - 1))", "1.0", "baselines"),
        (
            "P - 1 and P exchanged",
            "particles / (particles - 1)",
            "(particles - 1) / particles",
            "baselines",
        ),
    ),
    *_of(
        "mathematics/variances.py",
        ("weights swapped", "return k1, 1.0 - k1", "return 1.0 - k1, k1", "variances"),
        (
            "covariance's sign",
            "(a - c).clamp_min(0.0), (b - c)",
            "(a + c).clamp_min(0.0), (b + c)",
            "weighting",
        ),
        (
            "covariance left out of one",
            "(a - c).clamp_min(0.0), (b - c)",
            "(a - c).clamp_min(0.0), b",
            "weighting",
        ),
        (
            "second moments for variances",
            "deviations = wide - wide.mean(0, keepdim=True)",
            "deviations = wide",
            "variances",
        ),
        (
            "products of what is not centred",
            "(a - a.mean(0, keepdim=True)) * (b - b.mean(0, keepdim=True))",
            "a * b",
            "ranks",
        ),
        (
            "mixture swapped",
            "heard_b.mul_(of_b).addcmul_(heard_a, of_a)",
            "heard_b.mul_(of_a).addcmul_(heard_a, of_b)",
            "variances",
        ),
        (
            "minus infinity is no variance",
            "nan_to_num(torch.inf, torch.inf, torch.inf)",
            "nan_to_num(torch.inf, torch.inf, 0.0)",
            "not_finite",
        ),
        ("0 / 0 is one", "reciprocal(), 0.5)", "reciprocal(), 1.0)", "variances"),
    ),
    *_of(
        "pooling.py",
        (
            "spread within ranks alone",
            "[a.double() + b for a, b in",
            "[a.double() for a, b in",
            "ranks",
        ),
        ("mean of a rank's number", "[a - b / every for", "[a - b / particles for", "ranks"),
        (
            "moments of another rank",
            "means[ranks.rank], scatters[ranks.rank]",
            "means[0], scatters[0]",
            "ranks",
        ),
    ),
    *_of(
        "ranks.py",
        (
            "gradient of one rank alone",
            "return None, *sum_together(cotangents, ctx.ranks)",
            "return None, *cotangents",
            "ranks",
        ),
        (
            "sums of one rank alone",
            "            dist.all_reduce(total)\n",
            "            pass\n",
            "ranks",
        ),
    ),
    *_of(
        "mathematics/mixtures.py",
        ("weights over samples", ".softmax(2)", ".softmax(1)", "mixtures"),
        ("location's sign", "first - total * m)", "first + total * m)", "mixtures"),
        ("spread's sign", "second[0] - 2 * m * first", "second[0] + 2 * m * first", "mixtures"),
        ("no baseline added back", " + baseline.unsqueeze(2))", ")", "mixtures"),
        (
            "own loss in the baseline",
            "(total - grouped) / (self.particles - 1)",
            "total.expand_as(grouped) / self.particles",
            "mixtures",
        ),
        (
            "own group in the baseline",
            "(total - grouped.sum(1, keepdim=True))",
            "total",
            "mixtures",
        ),
        ("contributions to the scale", "+ sums[4] - sums[5])", "+ sums[4] + sums[5])", "mixtures"),
        ("void places count", "weights = weights.masked_fill(void, 0.0)", "pass", "mixtures"),
        ("log of the scale left out", "precision + s.log())", "precision)", "mixtures"),
    ),
    *_of(
        "mathematics/gaussians.py",
        ("Bessel's correction", "scatter / (x.shape[0] - 1)", "scatter / x.shape[0]", "gaussians"),
        (
            "the statistic's constant",
            "(linear + quadratic - constant)",
            "(linear + quadratic)",
            "gaussians",
        ),
        (
            "upper for lower factor",
            "noise @ cholesky(covariance).mT",
            "noise @ cholesky(covariance)",
            "gaussians",
        ),
        (
            "spread between batches",
            "particles * (apart.mT @ apart)",
            "(apart.mT @ apart)",
            "gaussians",
        ),
    ),
    *_of(
        "mathematics/quasi.py",
        (
            "particles in any order",
            "noise[principal_order(flat)] = sorted_noise",
            "noise[:] = sorted_noise",
            "quasi",
        ),
        (
            "points in the order of their noise",
            "points[points[:, 0].argsort(), 1:]",
            "points[points[:, 1].argsort(), 1:]",
            "quasi",
        ),
        ("uniform for normal", "torch.special.ndtri(", "(", "quasi"),
    ),
    *_of(
        "engine/backward_pass.py",
        (
            "a cut forgets what it had",
            "gradient if leaf.grad is None else leaf.grad + gradient",
            "gradient",
            "propagators graph",
        ),
        (
            "a parameter forgets what it had",
            "self.gradients[key] = self.gradients[key] + gradient",
            "self.gradients[key] = gradient",
            "propagators graph",
        ),
    ),
    *_of(
        "engine/graph.py",
        ("hooks fire in each segment", "    if not hooked:\n", "    if True:\n", "graph handover"),
        (
            "leaves walked once only",
            "if following is not None and following not in seen:",
            "if following is not None and len(leaves) < 1:",
            "graph",
        ),
    ),
    *_of(
        "engine/tape.py",
        (
            "messages ahead off by one",
            "sender = len(self.nodes) - 1",
            "sender = len(self.nodes)",
            "tape",
        ),
        (
            "nodes keep their contents",
            'clear = kind == "backward" and not self.root.keep',
            "clear = False",
            "memory",
        ),
    ),
    *_of(
        "engine/traversal.py",
        (
            "the last node is left out",
            "range(len(nodes) - 1, -1, -1)",
            "range(len(nodes) - 2, -1, -1)",
            "tape",
        ),
        (
            "the first node is left out",
            "range(len(nodes) - 1, -1, -1)",
            "range(len(nodes) - 1, 0, -1)",
            "tape",
        ),
        ("messages skip a node", "self.step = -1 if", "self.step = -2 if", "tape"),
        (
            "targets off by one",
            "index = i + relative\n",
            "index = i + relative - 1\n",
            "tape",
        ),
        (
            "the message's target first",
            "for candidate in (force_targets, target, targets):",
            "for candidate in (target, force_targets, targets):",
            "tape paper_listings",
        ),
    ),
    *_of(
        "engine/handover.py",
        ("incoming gradient ignored", "gradient * incoming.to(gradient)", "gradient", "handover"),
        (
            "cuts keep the last pass",
            "            leaf.grad = None\n",
            "            pass\n",
            "handover",
        ),
        (
            "a second pass unasked",
            "            self.release(_DIFFERENTIATED)\n",
            "            pass\n",
            "handover",
        ),
    ),
    *_of(
        "engine/costs.py",
        ("sum for mean", "costs.sum() / costs.shape[0]", "costs.sum()", "manager"),
        (
            "mean over steps",
            "torch.stack(self._means).sum()",
            "torch.stack(self._means).mean()",
            "manager",
        ),
        ("means of costs summed", "ranks.sum(own) / ranks.size", "ranks.sum(own)", "ranks"),
    ),
    *_of(
        "propagators/tp.py",
        (
            "mixture swapped",
            "mix(k_lr, of_lr, k_rp, of_rp)",
            "mix(k_rp, of_lr, k_lr, of_rp)",
            "closed_forms_tp",
        ),
        (
            "each half its own weights",
            "for pair, of_rp in zip(reversed(weights),",
            "for pair, of_rp in zip(weights,",
            "weighting",
        ),
        (
            "interval off by one",
            'counter % node["k_interval"]',
            '(counter + 1) % node["k_interval"]',
            "weighting",
        ),
        (
            "halves share a baseline",
            'by_half = centred_by_half(message["local_loss"], active_ranks())',
            "by_half = losses",
            "weighting",
        ),
        (
            "no shield for weights that come first",
            "used = [shielded(found, rp.cotangents)]",
            "used = [found]",
            "not_finite",
        ),
        (
            "weights first, exchanged",
            "mixed_cotangents(used[0], lr, rp)\n        inputs",
            "mixed_cotangents(used[0][::-1], lr, rp)\n        inputs",
            "fast_paths",
        ),
        (
            "weights of shared cotangents",
            "vector_jacobian_product(way.outputs, only_part(way.independent, part), inputs)",
            "vector_jacobian_product(way.outputs, only_part(way.cotangents, part), inputs)",
            "biw",
        ),
    ),
    *_of(
        "propagators/weights.py",
        (
            "mixture swapped at the node",
            "mix(weights[0], lr.cotangents, weights[1]",
            "mix(weights[1], lr.cotangents, weights[0]",
            "closed_forms_tp weighting",
        ),
        (
            "each half its own weights at the node",
            "((even, odd), (odd, even))",
            "((even, even), (odd, odd))",
            "weighting",
        ),
        (
            "score's sign",
            "first = first.shape == second.shape, -score",
            "first = first.shape == second.shape, score",
            "weighting",
        ),
        ("no shield", "if not sums:", "if True:", "not_finite"),
        (
            "no shield at the node",
            "return k_lr.masked_fill(spoilt, 1.0), k_rp.masked_fill(spoilt, 0.0)",
            "return weights",
            "not_finite",
        ),
    ),
    *_of(
        "propagators/halves.py",
        (
            "centring's sign",
            "(1 / particles - 1 / members)",
            "(1 / members - 1 / particles)",
            "weighting",
        ),
    ),
    *_of(
        "propagators/lr.py",
        (
            "no baseline",
            'message.get("baselined_loss", message.get("local_loss"))',
            'message.get("local_loss")',
            "closed_forms",
        ),
    ),
    *_of(
        "propagators/rp.py",
        (
            "the sample's cotangent is lost",
            "return gradient_message(node)",
            "return {}",
            "closed_forms",
        ),
        (
            "quasi-random samples without graph",
            "sample = normal.path().to(",
            "sample = normal.sample.to(",
            "quasi",
        ),
    ),
    *_of(
        "propagators/loss.py",
        ("gradient of the sum", "1.0 / costs.shape[0]", "1.0", "closed_forms"),
        ("own cost forgotten", "total = total + later", "total = later", "closed_forms"),
        ("later costs forgotten", "total = total + later", "pass", "closed_forms"),
    ),
    *_of(
        "propagators/baseline.py",
        (
            "functions in the other order",
            "for function in reversed(self._functions):",
            "for function in self._functions:",
            "baselines",
        ),
        ("a stale baseline", "            and made_of[0] is losses\n", "", "baselines"),
        (
            "a rank's number of particles",
            "particles = losses.shape[0] * ranks.size",
            "particles = losses.shape[0]",
            "ranks",
        ),
    ),
    *_of(
        "propagators/resample.py",
        (
            "the fit's cotangent is lost",
            "return gradient_message(node)",
            "return {}",
            "closed_forms_gaussian",
        ),
        (
            "no gradient from other ranks",
            "mean, covariance = sum_gradients(fitted, ranks)",
            "mean, covariance = fitted",
            "ranks",
        ),
    ),
    *_of(
        "propagators/shaping.py",
        (
            "Bessel's correction",
            "((particles - 1) / particles)",
            "1.0",
            "closed_forms_gaussian gaussians",
        ),
        (
            "covariance's gradient lost",
            "Listed(mean_gradient, covariance_gradient)",
            "Listed(mean_gradient, 0 * covariance_gradient)",
            "closed_forms_gaussian",
        ),
        (
            "later costs forgotten",
            'sum_base=Init(SumBase, sum_name="local_loss"',
            'sum_base=Init(SumBase, sum_name="other_loss"',
            "closed_forms_gaussian",
        ),
    ),
    *_of(
        "propagators/biw.py",
        ("mesh for likelihoods", 'if share != "mesh":', 'if share == "mesh":', "biw"),
        (
            "one group",
            "shared = share_samples(sample, loc, scale, group_size)",
            "shared = share_samples(sample, loc, scale, None)",
            "biw",
        ),
    ),
    *_of(
        "propagators/normal.py",
        (
            "the path's sign",
            "return self.loc + self.noise * self.scale",
            "return self.loc - self.noise * self.scale",
            "quasi",
        ),
        (
            "the noise's sign",
            "loc + drawn * scale, dist)",
            "loc - drawn * scale, dist)",
            "closed_forms",
        ),
        (
            "quasi-random noise's sign",
            "sample = loc + drawn * scale\n",
            "sample = loc - drawn * scale\n",
            "quasi",
        ),
    ),
    *_of(
        "propagators/pathways.py",
        (
            "RP's scale without noise",
            "[cotangent, cotangent * draw.noise]",
            "[cotangent, cotangent]",
            "closed_forms_tp",
        ),
        (
            "variances of shared cotangents",
            "self.cotangents if self.contributions is None else self.contributions",
            "self.cotangents",
            "biw",
        ),
    ),
    *_of(
        "per_particle/arithmetic.py",
        (
            "difference's sign",
            "b * -entry.function._saved_alpha\n\n\ndef _rsub",
            "b * entry.function._saved_alpha\n\n\ndef _rsub",
            "per_particle_rule per_particle per_particle_random",
        ),
        (
            "quotient's derivative",
            "operand / (other * other)",
            "operand / other",
            "per_particle per_particle_random",
        ),
        (
            "factor's own value",
            "function._saved_other if entry.slot == 0 else function._saved_self",
            "function._saved_self if entry.slot == 0 else function._saved_other",
            "per_particle per_particle_random",
        ),
    ),
    *_of(
        "per_particle/contributions.py",
        (
            "all rows of a table meet",
            "(equal(together[id(own)]) * (x @ x.mT)).sum()",
            "(x @ x.mT).sum()",
            "per_particle_modules per_particle",
        ),
        (
            "second moments for variances",
            "_square(rows.sub_(rows.mean(0, keepdim=True)))",
            "_square(rows)",
            "per_particle",
        ),
        (
            "one position of several",
            "_row_squares if positions == 1 else",
            "_row_squares if positions > 1 else",
            "per_particle",
        ),
    ),
    *_of(
        "per_particle/layers.py",
        ("padding", "(found != padding)", "(found == padding)", "per_particle_modules"),
        (
            "layer norm's weight",
            "return entry.sum_to_operand(b * scaled)",
            "return entry.sum_to_operand(b)",
            "per_particle_modules",
        ),
        (
            "beta for alpha",
            "_saved_alpha)\n    return _product(entry, b, function._saved_mat1",
            "_saved_beta)\n    return _product(entry, b, function._saved_mat1",
            "per_particle per_particle_modules",
        ),
    ),
    *_of(
        "per_particle/uses.py",
        ("the mean's square added", "square / -particles", "square / particles", "per_particle"),
        (
            "covariance from a sum's variance",
            "(of_sum - of_first - of_second) / 2",
            "(of_sum - of_first - of_second)",
            "per_particle weighting",
        ),
    ),
    *_of(
        "per_particle/fallback.py",
        (
            "portions begin at the first",
            "alone[rows, rows + start]",
            "alone[rows, rows]",
            "per_particle",
        ),
        (
            "rows are taken to be apart",
            "return not bool(leaks)",
            "return True",
            "per_particle per_particle_rule",
        ),
    ),
    *_of(
        "per_particle/rows.py",
        (
            "permutation the other way",
            "Layout(step.settings[0][axis] % len(step.operand), inner)",
            "Layout(step.settings[0].index(axis), inner)",
            "per_particle per_particle_modules per_particle_random",
        ),
        (
            "stacked axis off by one",
            "Layout(axis - (new < axis), inner)",
            "Layout(axis, inner)",
            "per_particle per_particle_modules per_particle_random",
        ),
    ),
    *_of(
        "per_particle/sketches.py",
        ("zeros for minus ones", "(2 * bits - 1)", "bits", "rollout_gradients"),
        (
            "sketches summed",
            "square if self.exact else square / self.copies",
            "square",
            "rollout_gradients",
        ),
        (
            "no mean",
            "self._of_mean(total.detach().to(sums.dtype) / self.particles)",
            "0.0",
            "rollout_gradients",
        ),
    ),
    *_of(
        "per_particle/rollouts.py",
        (
            "totals of the last node",
            "totals[key] + total if key in totals else total",
            "total",
            "rollout_gradients comparison",
        ),
        (
            "variances of the last node",
            "kept[step] + value if step in kept else value",
            "value",
            "rollout_gradients comparison",
        ),
    ),
    *_of(
        "callbacks/noise.py",
        ("all ranks' noise alike", "[given % 2**63, rank]", "[given % 2**63, 0]", "noise"),
        ("all ranks go on alike", "row[rank] for", "row[0] for", "noise"),
        (
            "the stream does not move",
            "            self.states = current(self._device)\n        restore(self._outside",
            "            pass\n        restore(self._outside",
            "noise",
        ),
    ),
)
