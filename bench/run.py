#!/usr/bin/env python3
"""Benchmarks of Refit beside whatever peers are on PATH: builders (W1-W5), registries (W6); and W5 with
1,000 images (fleet), tasks and triggers, alone.

    bench/run.py                       everything but fleet, three repetitions, tables on stdout
    bench/run.py --workloads w1,w6     some of it
    bench/run.py --tools refit         without peers

Both sides run on the same machine in the same minutes, one after the other within each repetition,
and the tables give medians and the ratio to the peer: only the ratio says something, since
machines differ and are noisy. Durable writes are on everywhere (it is the default of both).
The server under test listens on loopback only; every load is bounded in count or time.

Needs: python3, gcc, busybox-static, skopeo; mmdebstrap for W2 and W5; wrk and ab (apache2-utils)
for the request rates of W6. Peers used when found: buildah (with runc), docker-registry, registry (distribution).
"""
import argparse
import concurrent.futures as futures
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARGS = None
RESULTS = []  # dicts: tool, workload, step, and the measures


# ------------------------------------------------------------------ accounting


def cpu_of(pid):
    """User and system seconds of a process and of its children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def rss_of(pid, key="VmHWM"):
    """Memory of a process in MiB: its peak, or with VmRSS what it has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return 0.0


def clear_peak(pid):
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pass


client_cpu = 0.0
client_peak = 0.0
client_lock = threading.Lock()


def run(*command, env=None, cwd=None):
    """Runs a client to its end, keeps what it cost, fails loudly."""
    global client_cpu, client_peak
    process = subprocess.Popen([str(word) for word in command], env={**os.environ, **(env or {})}, cwd=cwd,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    with client_lock:
        client_cpu += usage.ru_utime + usage.ru_stime
        client_peak = max(client_peak, usage.ru_maxrss / 1024)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output.decode(errors='replace')[-1500:]}")
    return output.decode(errors="replace")


def record(tool, workload, step, **measures):
    row = dict(tool=tool, workload=workload, step=step, **measures)
    RESULTS.append(row)
    if ARGS.out:
        with open(ARGS.out, "a") as out:
            out.write(json.dumps(row) + "\n")
    shown = " ".join(f"{key}={value:g}" for key, value in measures.items())
    print(f"# {tool:16} {workload} {step:10} {shown}", file=sys.stderr, flush=True)


class Daemon:
    """A server on loopback, started here and ended here."""

    def __init__(self, command, ready, log):
        self.log = open(log, "ab")
        self.process = subprocess.Popen([str(word) for word in command], stdout=self.log, stderr=self.log,
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        self.pid = self.process.pid
        start = time.perf_counter()
        while time.perf_counter() - start < 30:
            if self.process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended, see {log}")
            try:
                if urllib.request.urlopen(ready, timeout=1).status == 200:
                    self.ready_after = time.perf_counter() - start
                    return
            except OSError:
                time.sleep(0.005)
        raise RuntimeError(f"{command[0]} is not ready, see {log}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fresh(path):
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)
    Path(path).mkdir(parents=True)
    return Path(path)


# ------------------------------------------------------------------ registries


def start_registry(name, folder):
    port = free_port()
    folder = fresh(folder)
    ready = f"http://127.0.0.1:{port}/v2/"
    if name == "refit":
        command = [ARGS.refit, "serve", "--listen", f"127.0.0.1:{port}", "--data", folder / "data"]
    else:
        config = folder / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage:\n  filesystem: {{rootdirectory: {folder}/data}}\n  delete: {{enabled: true}}\n"
            f"http: {{addr: '127.0.0.1:{port}'}}\n")
        command = [name, "serve", config]
    daemon = Daemon(command, ready, folder / "log")
    daemon.port = port
    return daemon


class Connection:
    """One HTTP/1.1 connection on a plain socket: the client must cost little."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = f"127.0.0.1:{port}"
        self.buffer = bytearray(1 << 20)

    def request(self, method, path, headers=(), body=b"", file=None):
        size = os.path.getsize(file) if file else len(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {size}\r\n"
        self.socket.sendall((head + "".join(h + "\r\n" for h in headers)).encode() + b"\r\n" + body)
        if file:
            with open(file, "rb") as source:
                self.socket.sendfile(source)
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.socket.recv(65536)
            if not piece:
                raise RuntimeError("connection closed")
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        found = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
        left = int(found.get("content-length", 0)) - len(rest)
        while left > 0 and method != "HEAD":
            got = self.socket.recv_into(self.buffer, min(left, len(self.buffer)))
            if not got:
                raise RuntimeError("connection closed")
            left -= got
        return int(lines[0].split()[1]), found


def push_blob(connection, repository, digest, body=b"", file=None):
    status, headers = connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    assert status == 202, status
    where = urllib.parse.urlsplit(urllib.parse.urljoin(f"http://{connection.host}/", headers["location"]))
    query = (where.query + "&" if where.query else "") + "digest=" + digest
    status, _ = connection.request("PUT", f"{where.path}?{query}",
                                   ["Content-Type: application/octet-stream"], body, file)
    assert status == 201, status


def digest_of(path):
    with open(path, "rb") as source:
        return "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()


def w6(name, folder):
    """1 GiB in 8 layers over 1 and 8 connections; request rates at 64 connections."""
    blobs = []
    for i in range(8):
        path = folder / f"blob{i}"
        if not path.exists():
            with open(path, "wb") as out:
                for _ in range(128):
                    out.write(os.urandom(1 << 20))
        blobs.append((path, digest_of(path), 128 << 20))
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [b[1] for b in blobs]}}).encode()
    config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
    layer = "application/vnd.oci.image.layer.v1.tar"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest,
                   "size": len(config)},
        "layers": [{"mediaType": layer, "digest": d, "size": n} for _, d, n in blobs]}).encode()
    manifest_digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    total = sum(size for _, _, size in blobs) / 1e6

    for _ in range(ARGS.reps):
        for jobs in (1, 8):
            server = start_registry(name, folder / "server")
            if jobs == 1:
                record(name, "w6", "start", seconds=server.ready_after, idle_mib=rss_of(server.pid, "VmRSS"))
            cpu, start = cpu_of(server.pid), time.perf_counter()
            with futures.ThreadPoolExecutor(jobs) as pool:
                list(pool.map(lambda b: push_blob(Connection(server.port), "big/one", b[1], file=b[0]), blobs))
            connection = Connection(server.port)
            push_blob(connection, "big/one", config_digest, body=config)
            status, _ = connection.request("PUT", "/v2/big/one/manifests/1", ["Content-Type: " + MANIFEST], manifest)
            assert status == 201, status
            wall = time.perf_counter() - start
            record(name, "w6", f"push-j{jobs}", mb_per_s=total / wall, cpu_s=cpu_of(server.pid) - cpu,
                   peak_mib=rss_of(server.pid))
            if jobs == 1:
                server.stop()
        for jobs in (1, 8):
            clear_peak(server.pid)
            cpu, start = cpu_of(server.pid), time.perf_counter()

            def get(blob):
                status, _ = Connection(server.port).request("GET", f"/v2/big/one/blobs/{blob[1]}")
                assert status == 200, status
            with futures.ThreadPoolExecutor(jobs) as pool:
                list(pool.map(get, blobs))
            wall = time.perf_counter() - start
            record(name, "w6", f"pull-j{jobs}", mb_per_s=total / wall, cpu_s=cpu_of(server.pid) - cpu,
                   peak_mib=rss_of(server.pid))
        for step, path in (("get-tag", "manifests/1"), ("get-digest", f"manifests/{manifest_digest}"),
                           ("head-tag", "manifests/1"), ("head-blob", f"blobs/{config_digest}")):
            request_rate(name, step, server, f"http://127.0.0.1:{server.port}/v2/big/one/{path}")
        server.stop()


def request_rate(name, step, server, url):
    """Requests over 64 connections. `wrk` waits for a body after HEAD, `ab` is slower than we are."""
    accept, seconds = f"Accept: {MANIFEST}", str(ARGS.seconds)
    if step.startswith("head"):
        command = ["ab", "-q", "-i", "-k", "-c", "64", "-t", seconds, "-n", "100000000", "-H", accept, url]
        rate_line, failures = "Requests per second:", ("Non-2xx",)
    else:
        command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-H", accept, url]
        rate_line, failures = "Requests/sec:", ("Non-2xx", "Socket errors")
    if not shutil.which(command[0]):
        return print(f"# {command[0]} is missing: no rate of {step}", file=sys.stderr)
    cpu, start = cpu_of(server.pid), time.perf_counter()
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used, passed = cpu_of(server.pid) - cpu, time.perf_counter() - start
    line = next(line for line in text.splitlines() if line.startswith(rate_line))
    rate = float(line.removeprefix(rate_line).split()[0])
    assert rate > 0 and not any(failure in text for failure in failures), text
    record(name, "w6", step, per_s=rate, per_cpu_s=rate * passed / max(used, 0.01))


# ------------------------------------------------------------------ builders


class Refit:
    """`refit build` against a running `refit serve`, which is builder and registry in one."""
    name = "refit"

    def start(self, folder):
        self.folder = folder
        self.server = start_registry("refit", folder)
        self.registry = f"127.0.0.1:{self.server.port}"
        push_bases(self.registry)

    def reset(self):
        self.server.stop()
        self.start(self.folder)

    def build(self, context, reference, base_moved=False):
        run(ARGS.refit, "build", "--server", f"http://{self.registry}", "-t", f"{self.registry}/{reference}", context)

    def cpu(self):
        return cpu_of(self.server.pid)

    def peak(self):
        return rss_of(self.server.pid)

    def clear(self):
        clear_peak(self.server.pid)

    def stop(self):
        self.server.stop()


class Buildah:
    """buildah with overlay and runc, pushing to Debian's docker-registry."""
    name = "buildah"

    def start(self, folder):
        self.folder = fresh(folder)
        self.server = start_registry("docker-registry", folder / "registry")
        self.registry = f"127.0.0.1:{self.server.port}"
        push_bases(self.registry)
        (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
        (folder / "registries.conf").write_text(
            f'unqualified-search-registries=[]\n[[registry]]\nlocation="{self.registry}"\ninsecure=true\n')
        (folder / "tmp").mkdir()
        self.env = {"CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"), "TMPDIR": str(folder / "tmp")}
        self.command = ["buildah", "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "overlay"]

    def reset(self):
        run(*self.command, "rm", "-a", env=self.env)
        run(*self.command, "rmi", "-a", "-f", env=self.env)

    def build(self, context, reference, base_moved=False):
        policy = ["--signature-policy", self.folder / "policy.json"]
        image = f"{self.registry}/{reference}"
        run(*self.command, "build", "--layers", "--jobs", "2", "--isolation", "oci", "--runtime", "runc",
            "--network", "host", *policy, *(["--pull"] if base_moved else []), "-t", image, context, env=self.env)
        run(*self.command, "push", "--tls-verify=false", *policy, image, env=self.env)

    def cpu(self):
        return cpu_of(self.server.pid)

    def peak(self):
        # The client is the builder: the largest of its processes.
        return client_peak

    def clear(self):
        clear_peak(self.server.pid)

    def stop(self):
        run(*self.command, "rm", "-a", env=self.env)
        self.server.stop()


def oci_layout(folder, layers, base_config=None):
    """An OCI layout of tar files, made here so that no builder under test has to."""
    blobs = fresh(folder) / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": "sha256:" + digest, "size": len(data)}
    described, diff_ids = [], []
    for layer in layers:
        plain = Path(layer).read_bytes()
        diff_ids.append("sha256:" + hashlib.sha256(plain).hexdigest())
        packed = put(gzip.compress(plain, 6, mtime=0))
        described.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **packed})
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": [path]},
                             "history": [{"created_by": "layer"} for _ in layers],
                             "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode())
    manifest = put(json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
        "layers": described}).encode())
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps(
        {"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, **manifest}]}))


def push_layout(layout, reference):
    run("skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{reference}")


def debian_suite():
    """The release of this machine, whose packages its mirror is known to have."""
    lines = Path("/etc/os-release").read_text().splitlines()
    found = [line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")]
    return found[0] if found else "stable"


def prepare(work):
    """Base layers: busybox, a generator of half-compressible data with its seed, Debian."""
    layers = work / "layers"
    layers.mkdir(parents=True, exist_ok=True)

    def pack(name, root):
        run("tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C", root,
            "-cf", layers / f"{name}.tar", ".")
    seed = work / "seed.bin"
    if not seed.exists():
        paths = sorted(p for p in Path("/usr/lib").rglob("*.so*") if p.is_file() and not p.is_symlink())
        with open(seed, "wb") as out:
            for path in paths:
                out.write(path.read_bytes())
                if out.tell() > 64 << 20:
                    break
            out.truncate(64 << 20)
    if not (layers / "busybox.tar").exists():
        root = fresh(work / "root")
        for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
            (root / name).mkdir()
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for applet in run("/bin/busybox", "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        pack("busybox", root)
    if not (layers / "gen.tar").exists():
        root = fresh(work / "root")
        (root / "bin").mkdir()
        run("gcc", "-O2", "-static", "-o", root / "bin/gen", HERE / "gen.c")
        shutil.copy(seed, root / "seed.bin")
        pack("gen", root)
    if not (layers / "debian.tar").exists() and shutil.which("mmdebstrap"):
        run("mmdebstrap", "--variant=essential", "--include=ca-certificates",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", debian_suite(), layers / "new.tar")
        (layers / "new.tar").rename(layers / "debian.tar")
    if not (work / "tree").exists():
        chance, data = random.Random(7), seed.read_bytes()
        for i in range(200):
            folder = work / "tree.new" / f"d{i:03}" / "sub"
            folder.mkdir(parents=True)
            for j in range(100):
                size = chance.randint(1024, 9216)
                at = chance.randrange(len(data) - size)
                (folder / f"f{j:03}.dat").write_bytes(b"%d/%d\n" % (i, j) + data[at:at + size])
        (work / "tree.new").rename(work / "tree")
    for name, parts in (("busybox", ["busybox"]), ("gen", ["busybox", "gen"]), ("debian", ["debian"])):
        files = [layers / f"{part}.tar" for part in parts]
        if all(file.exists() for file in files) and not (work / "layouts" / name).exists():
            oci_layout(work / "layouts" / name, files)


def push_bases(registry):
    for layout in sorted((ARGS.work / "layouts").iterdir()):
        push_layout(layout, f"{registry}/base/{layout.name}:1")


def unique():
    return f"{time.time_ns()}-{random.getrandbits(64):x}"


def measure(tool, workload, step, action):
    global client_cpu, client_peak
    tool.clear()
    client_cpu, client_peak, cpu, start = 0.0, 0.0, tool.cpu(), time.perf_counter()
    action()
    wall = time.perf_counter() - start
    record(tool.name, workload, step, wall_s=wall, cpu_s=tool.cpu() - cpu + client_cpu, peak_mib=tool.peak())


def cold_warm_changed(tool, workload, context, touch):
    image = f"bench/{workload}:{unique()}"
    tool.reset()
    measure(tool, workload, "cold", lambda: tool.build(context, image))
    measure(tool, workload, "warm", lambda: tool.build(context, image))
    touch()
    measure(tool, workload, "changed", lambda: tool.build(context, image + "b"))


def w1(tool, work):
    context = fresh(work / "context")
    (context / "Dockerfile").write_text(f"FROM {tool.registry}/base/busybox:1\nCOPY app.txt /app.txt\n")

    def touch():
        (context / "app.txt").write_text(unique())
    touch()
    rebase(tool, context, lambda: cold_warm_changed(tool, "w1", context, touch))


def rebase(tool, context, action):
    """A reset may move the registry to another port: the Dockerfile follows."""
    template = (context / "Dockerfile").read_text().replace(tool.registry, "{registry}")
    reset = tool.reset

    def reset_and_write():
        reset()
        (context / "Dockerfile").write_text(template.replace("{registry}", tool.registry))
    tool.reset = reset_and_write
    try:
        action()
    finally:
        tool.reset = reset


def w2(tool, work):
    if not (work / "layouts/debian").exists():
        print("# W2 needs mmdebstrap", file=sys.stderr)
        return
    stage = ("FROM {r}/base/debian:1 AS {s}\nCOPY stamp /stamp-{s}\nRUN mkdir /out && cp /stamp-{s} /out/0\n"
             "RUN sleep 1\nRUN seq 1 3000000 > /out/1 && sha256sum /out/1 > /out/2\n"
             "RUN seq {k} 7 4000000 | sort -r > /out/3\nRUN for i in 1 2 3 4 5; do md5sum /out/1; done > /out/4\n")
    context = fresh(work / "context")
    (context / "Dockerfile").write_text(
        stage.format(r=tool.registry, s="a", k=1) + stage.format(r=tool.registry, s="b", k=2) +
        f"FROM {tool.registry}/base/busybox:1\nCOPY --from=a /out /a\nCOPY --from=b /out /b\nCOPY last /last\n")

    def touch():
        (context / "last").write_text(unique())
    (context / "stamp").write_text(unique())
    touch()
    rebase(tool, context, lambda: cold_warm_changed(tool, "w2", context, touch))


def w3(tool, work):
    context = fresh(work / "context")
    (context / "Dockerfile").write_text(f"FROM {tool.registry}/base/busybox:1\nCOPY tree /srv/tree\n")
    run("cp", "-r", work / "tree", context / "tree")
    (context / "tree/d000/sub/f000.dat").write_text(unique())
    # As a user's files have: what has just been written may change within the clock's tick, and
    # has to be read once more.
    time.sleep(3)

    def touch():
        (context / "tree/d100/sub/f050.dat").write_text(unique())
    rebase(tool, context, lambda: cold_warm_changed(tool, "w3", context, touch))


def w4(tool, work):
    context = fresh(work / "context")
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(f"FROM {tool.registry}/base/gen:1\nRUN true\n")
    tool.build(context, "bench/w4:warm")
    dockerfile.write_text(
        f"FROM {tool.registry}/base/gen:1\nRUN gen /seed.bin 500 {random.getrandbits(31)} /big.bin\n")
    measure(tool, "w4", "run-500mb", lambda: tool.build(context, f"bench/w4:{unique()}"))


def on_one_base(tool, work, count):
    """Contexts of images on one Debian base, each with a `COPY` of 1 MB and metadata."""
    chance, contexts = random.Random(time.time_ns()), []
    fresh(work / "contexts")
    for i in range(count):
        context = work / f"contexts/{i}"
        context.mkdir()
        (context / "app.bin").write_bytes(chance.randbytes(512 << 10) + chance.randbytes(64) * 8192)
        (context / "Dockerfile").write_text(
            f"FROM {tool.registry}/base/w5:1\nCOPY app.bin /app/app.bin\nENV APP={i} A=1 B=2\n"
            f'LABEL app="{i}"\nEXPOSE 8080\nENTRYPOINT ["/app/app.bin"]\n')
        contexts.append(context)
    push_layout(work / "layouts/debian", f"{tool.registry}/base/w5:1")
    return contexts


def move_base(tool, work):
    """The base gets one more layer."""
    patch = fresh(work / "patch")
    (patch / "usr/lib/patched").mkdir(parents=True)
    (patch / "usr/lib/patched/lib.so").write_bytes(random.randbytes(5 << 20))
    run("tar", "-C", patch, "-cf", work / "patch.tar", "usr")
    oci_layout(work / "patched", [work / "layers/debian.tar", work / "patch.tar"])
    push_layout(work / "patched", f"{tool.registry}/base/w5:1")


def build_all(tool, contexts, jobs, tag):
    with futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda i: tool.build(contexts[i], f"bench/w5-{i}:{tag}", base_moved=True), range(len(contexts))))


def has_debian(work):
    if not (work / "layouts/debian").exists():
        print("# W5 needs mmdebstrap", file=sys.stderr)
    return (work / "layouts/debian").exists()


def w5(tool, work):
    if not has_debian(work):
        return
    contexts = on_one_base(tool, work, ARGS.images)
    measure(tool, "w5", "initial", lambda: build_all(tool, contexts, 8, "1"))
    for jobs in (1, 8):
        move_base(tool, work)
        measure(tool, "w5", f"patch-j{jobs}", lambda: build_all(tool, contexts, jobs, f"p{jobs}"))


def fleet(tool, work):
    """W5 with many images: only Refit's own, without a peer."""
    if tool.name != "refit" or not has_debian(work):
        return
    tool.reset()
    contexts = on_one_base(tool, work, ARGS.fleet)
    measure(tool, "fleet", "initial", lambda: build_all(tool, contexts, 8, "1"))
    move_base(tool, work)
    measure(tool, "fleet", "patch-j8", lambda: build_all(tool, contexts, 8, "p8"))


# ------------------------------------------------------------------ report


def table(workloads):
    """Medians, and what Refit is to each peer: above 1 is better for Refit."""
    groups = {}
    for row in RESULTS:
        key = (row["workload"], row["step"])
        for name, value in row.items():
            if name not in ("tool", "workload", "step"):
                groups.setdefault(key, {}).setdefault(name, {}).setdefault(row["tool"], []).append(value)
    tools = list(dict.fromkeys(row["tool"] for row in RESULTS))
    peers = [tool for tool in tools if tool != "refit"]
    print("| workload | step | measure | " + " | ".join(tools) + " | " + " | ".join(f"refit : {p}" for p in peers) + " |")
    print("|" + "---|" * (3 + len(tools) + len(peers)))
    for (workload, step), measures in groups.items():
        for name, by_tool in measures.items():
            medians = {tool: statistics.median(values) for tool, values in by_tool.items()}
            cells = [f"{medians[tool]:.3g}" if tool in medians else "" for tool in tools]
            larger_is_better = name.startswith(("mb_per", "per_"))
            for peer in peers:
                if "refit" not in medians or peer not in medians or not medians[peer] or not medians["refit"]:
                    cells.append("")
                    continue
                ratio = medians["refit"] / medians[peer]
                cells.append(f"{ratio if larger_is_better else 1 / ratio:.2f}x")
            print(f"| {workload} | {step} | {name} | " + " | ".join(cells) + " |")


# ------------------------------------------------------------------ tasks


def tasks(tool, work):
    """Quick runs of task files: only Refit's own, without a peer. Two figures: from a run's queueing to its first
    step's first output, on a warm server, and what a step of a 20-step task takes beside a `RUN` that does the same."""
    if tool.name != "refit":
        return
    tool.reset()
    image = f"{tool.registry}/base/busybox:1"
    context = fresh(work / "context")
    (context / "acb.yaml").write_text("steps:\n" + f"  - cmd: {image} true\n" * 20)
    token = (tool.folder / "data/keys/api-token").read_text().strip()
    refit_run = (ARGS.refit, "run", "--server", f"http://{tool.registry}")

    def events(run):
        url = f"http://{tool.registry}/api/v1/registries/local/runs/{run}/events"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def finished(*args):
        text = subprocess.run([*refit_run, "-o", "json", *args], check=True, capture_output=True, text=True).stdout
        return events(json.loads(text)["name"])

    def at(events, kind):
        return next(event["at"] for event in events if event["kind"] == kind)
    finished("--cmd", f"{image} echo warm")
    waits, steps = [], []
    for _ in range(10):
        run = finished("--cmd", f"{image} echo first")
        waits.append((at(run, "output") - at(run, "status")) / 1000)
    for _ in range(3):
        run = finished(context)
        steps.append((at(run, "finished") - at(run, "status")) / 1000 / 20)
    (context / "Dockerfile").write_text(f"FROM {image}\n" + "RUN true\n" * 20)
    start = time.perf_counter()
    run_quiet = (ARGS.refit, "build", "--server", f"http://{tool.registry}", "--no-cache", context)
    subprocess.run(run_quiet, check=True, capture_output=True)
    record(tool.name, "tasks", "start", queue_to_output_s=statistics.median(waits))
    record(tool.name, "tasks", "steps", step_s=statistics.median(steps),
           run_instruction_s=(time.perf_counter() - start) / 20)


# ------------------------------------------------------------------ triggers

INDEX = "application/vnd.oci.image.index.v1+json"


def triggers(folder, tasks=10_000, bases=20, pushes=15):
    """With many tasks stored: from the move of a tag in the journal until the run of the task on it is queued; and how
    long the server takes to start again. What each task was built on is written as its run would have written it."""
    daemon = start_registry("refit", folder)
    host = f"127.0.0.1:{daemon.port}"
    token = (folder / "data/keys/api-token").read_text().strip()
    refit = (ARGS.refit, "task", "create", "pattern", "--cmd", f"{host}/none true", "--schedule", "0 5 1 1 *")
    subprocess.run(refit, check=True, capture_output=True, env={"REFIT_SERVER": f"http://{host}", "REFIT_TOKEN": token})
    database = sqlite3.connect(folder / "data/refit.db", timeout=60)
    database.row_factory = sqlite3.Row
    absent = "sha256:" + "0" * 64
    with database:
        for table in ("tasks", "trigger_timers"):
            row = dict(database.execute(f"SELECT * FROM {table}").fetchone())
            for number in range(tasks - 1):
                name = f"task{number:05}"
                row.update({"name_key": name, **({"name": name} if "name" in row else {})})
                marks = ",".join("?" * len(row))
                database.execute(f"INSERT INTO {table} ({','.join(row)}) VALUES ({marks})", list(row.values()))
        for number in range(tasks - 1):
            repository = f"os{number}" if number < bases else f"other{number % 100}"
            database.execute("INSERT INTO trigger_bases VALUES ('local', ?, ?, ?, '1', 1, ?, ?)",
                             (f"task{number:05}", host, repository, absent, json.dumps([absent])))
    connection = Connection(daemon.port)
    for push in range(pushes):
        for number in range(bases):
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"n": f"{push} {number}"}}
            body = json.dumps(index).encode()
            status, _ = connection.request("PUT", f"/v2/os{number}/manifests/1", [f"Content-Type: {INDEX}"], body)
            assert status == 201, status
            time.sleep(0.03)
    time.sleep(1)
    queued = {}
    for at, cause in database.execute("SELECT created_at, cause FROM runs WHERE cause IS NOT NULL ORDER BY number"):
        for image in json.loads(cause).get("images", []):
            queued.setdefault(image["digest"], at)
    moves = database.execute("SELECT at, new FROM tag_moves").fetchall()
    waits = sorted(queued[new] - at for at, new in moves if new in queued)
    daemon.stop()
    again = Daemon([ARGS.refit, "serve", "--listen", host, "--data", folder / "data"], f"http://{host}/v2/", folder / "log")
    again.stop()
    record("refit", "triggers", "push", queued_p50_ms=statistics.median(waits),
           queued_p99_ms=waits[int(len(waits) * 0.99) - 1], runs=len(waits))
    record("refit", "triggers", "restart", ready_s=again.ready_after)


def main():
    global ARGS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refit", default=str(HERE.parent / "target/release/refit"), help="the binary to measure")
    parser.add_argument("--work", type=Path, default=Path("/tmp/refit-bench"), help="folder for inputs and state")
    parser.add_argument("--tools", default="refit,buildah", help="builders for W1-W5")
    parser.add_argument("--registries", default="refit,docker-registry,registry", help="registries for W6")
    parser.add_argument("--workloads", default="w1,w2,w3,w4,w5,w6,tasks,triggers")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="length of one request-rate measurement")
    parser.add_argument("--images", type=int, default=50, help="images of W5")
    parser.add_argument("--fleet", type=int, default=1000, help="images of the workload fleet")
    parser.add_argument("--out", help="also append every measurement to this file, a JSON line each")
    ARGS = parser.parse_args()
    ARGS.work.mkdir(parents=True, exist_ok=True)
    workloads = ARGS.workloads.split(",")
    if "w6" in workloads:
        folder = ARGS.work / "w6"
        folder.mkdir(exist_ok=True)
        for name in ARGS.registries.split(","):
            if name == "refit" or shutil.which(name):
                w6(name, folder)
            else:
                print(f"# {name} is not on PATH", file=sys.stderr)
    if "triggers" in workloads:
        triggers(ARGS.work / "triggers")
    builders = [w for w in workloads if w not in ("w6", "triggers")]
    if builders:
        prepare(ARGS.work)
        tools = []
        for name in ARGS.tools.split(","):
            kind = {"refit": Refit, "buildah": Buildah}[name]
            if name != "refit" and not shutil.which(name):
                print(f"# {name} is not on PATH", file=sys.stderr)
                continue
            tool = kind()
            tool.start(ARGS.work / name)
            tools.append(tool)
        try:
            for workload in builders:
                for _ in range(1 if workload in ("w5", "fleet", "tasks") else ARGS.reps):
                    for tool in tools:
                        {"w1": w1, "w2": w2, "w3": w3, "w4": w4, "w5": w5, "fleet": fleet, "tasks": tasks}[workload](tool, ARGS.work)
        finally:
            for tool in tools:
                tool.stop()
    table(workloads)


if __name__ == "__main__":
    main()
