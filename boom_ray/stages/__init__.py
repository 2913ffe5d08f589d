"""The stages of a run, each carried out on the run's ledger; :mod:`boom_ray.pipeline` puts them in order.

``preparation`` makes corpus, tokens and bags, ``members`` trains, ``merging`` and ``final`` merge and publish,
``scoring`` scores; ``tasks`` are those of their parts that run elsewhere on the cluster.
"""
