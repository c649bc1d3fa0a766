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


def cinder(version, url):
    from cinderclient import client as make
    from keystoneauth1 import noauth, session

    class Plain(noauth.NoAuth):
        def get_endpoint(self, *_args, **_more):
            return f"{url}/v{version}/p1"

    cinder = make.Client(version, session=session.Session(auth=Plain()))
    volumes = [cinder.volumes.create(1, name=f"vol{n}", metadata={"n": str(n)}) for n in range(5)]
    for volume in volumes:
        wait(lambda: cinder.volumes.get(volume.id), "available")
    page = cinder.volumes.list(limit=2, sort="created_at:asc")
    rest = cinder.volumes.list(marker=page[-1].id, limit=2, sort="created_at:asc")
    assert [v.name for v in page + rest] == ["vol0", "vol1", "vol2", "vol3"], [v.name for v in page + rest]
    found = cinder.volumes.list(search_opts={"name": "vol3"})
    assert [v.id for v in found] == [volumes[3].id], found
    first = cinder.volumes.get(volumes[0].id)
    assert first.metadata["n"] == "0" and first.size == 1
    cinder.volumes.extend(first, 2)
    assert wait(lambda: cinder.volumes.get(first.id), "available").size == 2
    cinder.volumes.set_metadata(first, {"k": "v"})
    assert cinder.volumes.get(first.id).metadata["k"] == "v"
    cinder.volumes.update(first, name="renamed")
    snapshot = cinder.volume_snapshots.create(first.id, name="snap", force=False)
    snapshot = wait(lambda: cinder.volume_snapshots.get(snapshot.id), "available")
    assert snapshot.volume_id == first.id and snapshot.size == 2
    cinder.volume_snapshots.set_metadata(snapshot, {"a": "b"})
    assert cinder.volume_snapshots.get(snapshot.id).metadata == {"a": "b"}
    # Rollback is a call of EVS's own.
    answer = cinder.volumes._cs_request(f"/os-vendor-snapshots/{snapshot.id}/rollback",
                                        "POST", body={"rollback": {"volume_id": first.id}}) \
        if hasattr(cinder.volumes, "_cs_request") else \
        cinder.client.post(f"/os-vendor-snapshots/{snapshot.id}/rollback",
                           body={"rollback": {"volume_id": first.id}})
    assert answer[0].status_code == 202, answer
    wait(lambda: cinder.volumes.get(first.id), "available")
    fork = cinder.volumes.create(2, snapshot_id=snapshot.id, name="fork")
    assert wait(lambda: cinder.volumes.get(fork.id), "available").snapshot_id == snapshot.id
    cinder.volumes.delete(first, cascade=True)
    gone(lambda: cinder.volumes.get(first.id))
    gone(lambda: cinder.volume_snapshots.get(snapshot.id))
    for volume in [*volumes[1:], fork]:
        cinder.volumes.delete(volume)
        gone(lambda: cinder.volumes.get(volume.id))
    assert cinder.volumes.list() == []


def sdk(url):
    import openstack
    from keystoneauth1 import noauth, session

    cloud = openstack.connection.Connection(
        session=session.Session(auth=noauth.NoAuth(endpoint=f"{url}/v3/p1")),
        block_storage_endpoint_override=f"{url}/v3/p1", block_storage_api_version="3")
    store = cloud.block_storage
    volumes = [store.create_volume(size=1, name=f"sdk{n}") for n in range(5)]
    for volume in volumes:
        wait(lambda: store.get_volume(volume.id), "available")
    assert len(list(store.volumes(limit=2))) == 5
    store.extend_volume(volumes[0], 3)
    assert wait(lambda: store.get_volume(volumes[0].id), "available").size == 3
    snapshot = store.create_snapshot(volume_id=volumes[0].id, name="s")
    wait(lambda: store.get_snapshot(snapshot.id), "available")
    assert [s.id for s in store.snapshots()] == [snapshot.id]
    answer = store.post(f"/os-vendor-snapshots/{snapshot.id}/rollback",
                        json={"rollback": {"volume_id": volumes[0].id}})
    assert answer.status_code == 202, answer.text
    store.delete_volume(volumes[0], cascade=True)
    gone(lambda: store.get_volume(volumes[0].id))
    for volume in volumes[1:]:
        store.delete_volume(volume)
    assert list(store.snapshots()) == []


if __name__ == "__main__":
    if sys.argv[1] == "cinder":
        cinder(*sys.argv[2:])
    else:
        sdk(sys.argv[2])
    print("all is well:", *sys.argv[1:])
