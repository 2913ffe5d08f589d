"""Placement groups whose maker was killed: Ray keeps them, with all that they hold, for as long as the job lives."""

from __future__ import annotations


def release_orphans() -> int:
    """Give back what placement groups of this job hold whose maker, an actor, is dead; how many there were.

    Ray Train starts an actor that would do the same, but it asks the dashboard, and where there is none never hears.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    table = state._connect_and_get_accessor().get_placement_group_table()
    orphans = [
        group
        for group in map(PlacementGroupTableData.FromString, table)
        if group.creator_actor_dead
        and not ray.ActorID(group.creator_actor_id).is_nil()  # the driver's own
        and group.creator_job_id.hex() == job
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for group in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(orphans)
