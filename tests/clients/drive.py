"""Drives a running cloud_serve with clients that know nothing of it.

usage: drive.py cinder VERSION URL | drive.py sdk URL
"""
import sys
import time


def wait(get, status):
    for _ in range(100):
        found = get()
        if found.status == status:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{found.id} is {found.status}, not {status}")


def gone(get):
    for _ in range(100):
        try:
            get()
        except Exception as e:  # each client has its own class for 404
            assert "404" in str(e) or "NotFound" in type(e).__name__ or "No " in str(e), e
            return
        time.sleep(0.05)
    raise AssertionError("still there")


def refused(status, call):
    try:
        call()
    except Exception as e:  # each client has its own classes for statuses
        code = getattr(e, "code", None) or getattr(e, "status_code", None) or getattr(e, "http_status", None)
        assert code == status, (code, e)
        return
    raise AssertionError(f"not refused with {status}")


def cinder(version, url):
    from cinderclient import client as make
    from keystoneauth1 import noauth, session

    class Plain(noauth.NoAuth):
        def get_endpoint(self, *_args, **_more):
            return f"{url}/v{version}/p1"

    cinder = make.Client(version, session=session.Session(auth=Plain()))
    assert [z.zoneName for z in cinder.availability_zones.list()] == ["az1"]
    assert "SSD" in [t.name for t in cinder.volume_types.list()]

    # Create, show, list with paging, filters.
    volumes = [cinder.volumes.create(1, name=f"vol{n}", description="d", metadata={"n": str(n)}) for n in range(5)]
    for volume in volumes:
        wait(lambda: cinder.volumes.get(volume.id), "available")
    page = cinder.volumes.list(limit=2, sort="created_at:asc")
    rest = cinder.volumes.list(marker=page[-1].id, limit=2, sort="created_at:asc")
    assert [v.name for v in page + rest] == ["vol0", "vol1", "vol2", "vol3"], [v.name for v in page + rest]
    assert [v.name for v in cinder.volumes.list(detailed=False, sort="name:desc")] == [f"vol{n}" for n in (4, 3, 2, 1, 0)]
    found = cinder.volumes.list(search_opts={"name": "vol3"})
    assert [v.id for v in found] == [volumes[3].id], found
    found = cinder.volumes.list(search_opts={"metadata": {"n": "2"}})
    assert [v.id for v in found] == [volumes[2].id], found
    first = cinder.volumes.get(volumes[0].id)
    assert first.metadata["n"] == "0" and first.size == 1 and first.description == "d" and first.bootable == "false"
    absolute = {limit.name: limit.value for limit in cinder.limits.get().absolute}
    assert absolute["totalVolumesUsed"] == 5, absolute
    refused(404, lambda: cinder.volumes.get("00000000-0000-4000-8000-000000000001"))
    refused(400, lambda: cinder.volumes.create(0))

    # Extend, metadata, update.
    cinder.volumes.extend(first, 2)
    assert wait(lambda: cinder.volumes.get(first.id), "available").size == 2
    refused(400, lambda: cinder.volumes.extend(first, 2))
    cinder.volumes.set_metadata(first, {"k": "v"})
    assert cinder.volumes.get(first.id).metadata == {"n": "0", "k": "v"}
    cinder.volumes.delete_metadata(first, ["n"])
    cinder.volumes.update_all_metadata(first, {"all": "new"})
    assert cinder.volumes.get(first.id).metadata == {"all": "new"}
    cinder.volumes.update(first, name="renamed", description="e")
    first = cinder.volumes.get(first.id)
    assert (first.name, first.description) == ("renamed", "e")

    # Attach, and what that refuses.
    cinder.volumes.reserve(first)
    wait(lambda: cinder.volumes.get(first.id), "attaching")
    cinder.volumes.attach(first, "00000000-0000-4000-8000-00000000000a", "/dev/vdb")
    held = wait(lambda: cinder.volumes.get(first.id), "in-use")
    assert held.attachments[0]["device"] == "/dev/vdb"
    refused(400, lambda: cinder.volume_snapshots.create(first.id))
    cinder.volumes.begin_detaching(first)
    cinder.volumes.detach(first, held.attachments[0]["attachment_id"])
    wait(lambda: cinder.volumes.get(first.id), "available")
    cinder.volumes.set_bootable(first, True)
    assert cinder.volumes.get(first.id).bootable == "true"
    cinder.volumes.update_readonly_flag(first, False)

    # Snapshots: create, show, list with paging, metadata, update.
    snapshot = cinder.volume_snapshots.create(first.id, name="snap", force=False, metadata={"x": "y"})
    snapshot = wait(lambda: cinder.volume_snapshots.get(snapshot.id), "available")
    assert snapshot.volume_id == first.id and snapshot.size == 2 and snapshot.metadata == {"x": "y"}
    cinder.volume_snapshots.set_metadata(snapshot, {"a": "b"})
    cinder.volume_snapshots.delete_metadata(snapshot, ["x"])
    assert cinder.volume_snapshots.get(snapshot.id).metadata == {"a": "b"}
    cinder.volume_snapshots.update(snapshot, name="named", description="s")
    more = [cinder.volume_snapshots.create(first.id, name=f"s{n}") for n in range(3)]
    listed = cinder.volume_snapshots.list(search_opts={"volume_id": first.id}, limit=2)
    listed += cinder.volume_snapshots.list(search_opts={"volume_id": first.id}, marker=listed[-1].id)
    assert [s.name for s in listed] == ["s2", "s1", "s0", "named"], [s.name for s in listed]
    cinder.volume_snapshots.delete(more[0])
    gone(lambda: cinder.volume_snapshots.get(more[0].id))

    # Rollback is a call of EVS's own.
    answer = raw_rollback(cinder, snapshot.id, first.id)
    assert answer[0].status_code == 202 and answer[1] == {"rollback": {"volume_id": first.id}}, answer
    wait(lambda: cinder.volumes.get(first.id), "available")
    refused(400, lambda: raw_rollback(cinder, snapshot.id, volumes[1].id))

    # What is made from a snapshot outlives it and its volume.
    fork = cinder.volumes.create(2, snapshot_id=snapshot.id, name="fork")
    assert wait(lambda: cinder.volumes.get(fork.id), "available").snapshot_id == snapshot.id
    copy = cinder.volumes.create(2, source_volid=fork.id)
    assert wait(lambda: cinder.volumes.get(copy.id), "available").source_volid == fork.id
    cinder.volumes.delete(first, cascade=True)
    gone(lambda: cinder.volumes.get(first.id))
    gone(lambda: cinder.volume_snapshots.get(snapshot.id))
    for volume in [*volumes[1:], fork, copy]:
        cinder.volumes.delete(volume)
        gone(lambda: cinder.volumes.get(volume.id))
    assert cinder.volumes.list() == [] and cinder.volume_snapshots.list() == []


def raw_rollback(cinder, snapshot, volume):
    """The answer and its body."""
    path, body = f"/os-vendor-snapshots/{snapshot}/rollback", {"rollback": {"volume_id": volume}}
    return cinder.client.post(path, body=body)


def sdk(url):
    import openstack
    from keystoneauth1 import noauth, session

    cloud = openstack.connection.Connection(
        session=session.Session(auth=noauth.NoAuth(endpoint=f"{url}/v3/p1")),
        block_storage_endpoint_override=f"{url}/v3/p1", block_storage_api_version="3")
    store = cloud.block_storage
    assert [z.name for z in store.availability_zones()] == ["az1"]
    assert "SSD" in [t.name for t in store.types()]

    # Create, show, list with paging: the client follows the links.
    volumes = [store.create_volume(size=1, name=f"sdk{n}", metadata={"n": str(n)}) for n in range(5)]
    for volume in volumes:
        wait(lambda: store.get_volume(volume.id), "available")
    listed = list(store.volumes(limit=2))
    assert [v.id for v in listed] == [v.id for v in reversed(volumes)], listed
    assert [v.id for v in store.volumes(details=False, limit=3)] == [v.id for v in listed]
    assert [v.id for v in store.volumes(name="sdk3")] == [volumes[3].id]
    first = store.get_volume(volumes[0].id)
    assert (first.size, first.metadata, first.project_id) == (1, {"n": "0"}, "p1"), first
    refused(404, lambda: store.get_volume("00000000-0000-4000-8000-000000000001"))

    # Extend, metadata, update.
    store.extend_volume(first, 3)
    assert wait(lambda: store.get_volume(first.id), "available").size == 3
    refused(400, lambda: store.extend_volume(first, 3))
    store.set_volume_metadata(first, k="v")
    assert store.get_volume_metadata(first).metadata == {"n": "0", "k": "v"}
    store.delete_volume_metadata(first, ["n"])
    assert store.get_volume(first.id).metadata == {"k": "v"}
    store.update_volume(first, name="renamed")
    assert store.get_volume(first.id).name == "renamed"
    store.set_volume_bootable_status(first, True)
    assert store.get_volume(first.id).is_bootable

    # Snapshots: create, show, list with paging, metadata, update.
    snapshots = [store.create_snapshot(volume_id=first.id, name=f"s{n}", metadata={"x": "y"}) for n in range(3)]
    for snapshot in snapshots:
        wait(lambda: store.get_snapshot(snapshot.id), "available")
    listed = list(store.snapshots(limit=2))
    assert [s.id for s in listed] == [s.id for s in reversed(snapshots)], listed
    assert [s.id for s in store.snapshots(details=False, name="s1")] == [snapshots[1].id]
    snapshot = store.get_snapshot(snapshots[0].id)
    assert (snapshot.volume_id, snapshot.size, snapshot.metadata) == (first.id, 3, {"x": "y"}), snapshot
    store.set_snapshot_metadata(snapshot, a="b")
    assert store.get_snapshot_metadata(snapshot).metadata == {"x": "y", "a": "b"}
    store.update_snapshot(snapshot, name="named")
    assert store.get_snapshot(snapshot.id).name == "named"
    store.delete_snapshot(snapshots[2])
    gone(lambda: store.get_snapshot(snapshots[2].id))

    # Rollback is a call of EVS's own.
    def roll(volume):
        return store.post(f"/os-vendor-snapshots/{snapshot.id}/rollback", json={"rollback": {"volume_id": volume}})

    answer = roll(first.id)
    assert answer.status_code == 202 and answer.json() == {"rollback": {"volume_id": first.id}}, answer.text
    assert roll(volumes[1].id).status_code == 400

    fork = store.create_volume(size=3, snapshot_id=snapshot.id)
    assert wait(lambda: store.get_volume(fork.id), "available").snapshot_id == snapshot.id
    store.delete_volume(first, cascade=True)
    gone(lambda: store.get_volume(first.id))
    gone(lambda: store.get_snapshot(snapshot.id))
    for volume in [*volumes[1:], fork]:
        store.delete_volume(volume)
        gone(lambda: store.get_volume(volume.id))
    assert list(store.snapshots()) == [] and list(store.volumes()) == []
    assert list(store.backups()) == []


if __name__ == "__main__":
    if sys.argv[1] == "cinder":
        cinder(*sys.argv[2:])
    else:
        sdk(sys.argv[2])
    print("all is well:", *sys.argv[1:])
