//! On loopback sockets, with ports that the kernel chose. The cases block on a thread of their own,
//! while the servers run on the runtime's.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::sleep,
    time::Instant,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn name(name: &str) -> Name {
    Name { namespace: "shop".into(), name: name.into() }
}

fn wanted(services: &[(&str, u16, usize)]) -> ServicesHealth {
    let health = |&(service, port, local_endpoints): &(&str, u16, usize)| {
        (name(service), ServiceHealth { port, local_endpoints })
    };
    services.iter().map(health).collect()
}

/// A port that nobody listens at, as long as nobody else is given it.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn loopback() -> Where {
    Where::At(vec![IpAddr::from(Ipv4Addr::LOCALHOST)])
}

fn ask(address: &str, port: u16, method: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Asks until the answer is as it shall be; `None`: that nobody listens.
fn eventually(port: u16, code: Option<&str>) -> String {
    let begun = Instant::now();
    loop {
        let answer = ask("127.0.0.1", port, "GET", "/").ok();
        let found = answer.as_ref().and_then(|text| text.split(' ').nth(1));
        if found == code {
            return answer.unwrap_or_default();
        }
        assert!(begun.elapsed() < PATIENCE, "{port}: {code:?}, not {answer:?}");
        sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_answer_is_kube_proxys_at_any_path_by_any_method() {
    let board = Arc::new(Board::default());
    let checks = HealthChecks::start(Arc::clone(&board), Events::unheard());
    let port = free_port();
    checks.set(&wanted(&[("web", port, 2)]), loopback());
    let text = eventually(port, Some("200"));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert_eq!(
        body,
        r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#
    );
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ] {
        assert!(head.lines().any(|line| line == header), "{header}: {head}");
    }
    let posted = ask("127.0.0.1", port, "POST", "/any/where?x").unwrap();
    assert!(posted.starts_with("HTTP/1.1 200 ") && posted.ends_with(body), "{posted}");

    // Endpoints went, then changes cannot be written: 503 with the same headers.
    checks.set(&wanted(&[("web", port, 0)]), loopback());
    let text = eventually(port, Some("503")).to_lowercase();
    assert!(text.contains("x-load-balancing-endpoint-weight: 0\r\n"), "{text}");
    checks.set(&wanted(&[("web", port, 1)]), loopback());
    eventually(port, Some("200"));
    board.state().behind_since = Instant::now().checked_sub(Duration::from_secs(61));
    let text = eventually(port, Some("503"));
    assert!(text.ends_with(r#""localEndpoints":1,"serviceProxyHealthy":false}"#), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_moves_and_goes_with_its_service() {
    let checks = HealthChecks::start(Arc::default(), Events::unheard());
    let (one, two) = (free_port(), free_port());
    checks.set(&wanted(&[("a", one, 1), ("b", two, 1)]), Where::Everywhere);
    eventually(one, Some("200"));
    eventually(two, Some("200"));
    if let Ok(text) = ask("::1", one, "GET", "/") {
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }
    // A connection that is kept, to one that goes.
    let mut kept = TcpStream::connect(("127.0.0.1", one)).unwrap();
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(kept.read(&mut [0; 1024]).unwrap() > 0);
    // They change ports in one step.
    checks.set(&wanted(&[("a", two, 1), ("b", one, 1)]), Where::Everywhere);
    let begun = Instant::now();
    while !eventually(one, Some("200")).contains(r#""name":"b""#) {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(eventually(two, Some("200")).contains(r#""name":"a""#));
    let mut rest = String::new();
    kept.read_to_string(&mut rest).expect("it is closed");
    checks.set(&wanted(&[("b", one, 1)]), Where::Everywhere);
    eventually(two, None);
    checks.set(&wanted(&[]), Where::Everywhere);
    eventually(one, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_port_that_is_taken_is_told_tried_again_and_stops_nobody_else() {
    let board = Arc::new(Board::default());
    let checks = HealthChecks::start(Arc::clone(&board), Events::unheard());
    let (taken, free) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_port());
    let port = taken.local_addr().unwrap().port();
    checks.set(&wanted(&[("a", port, 1), ("b", free, 1)]), loopback());
    eventually(free, Some("200"));
    let begun = Instant::now();
    let problems = loop {
        let problems = board.state().problems();
        if !problems.is_empty() {
            break problems;
        }
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10));
    };
    let text = problems[0].to_string();
    let begins =
        format!("Service shop/a: spec.healthCheckNodePort: cannot listen at 127.0.0.1:{port}: ");
    assert!(problems.len() == 1 && text.starts_with(&begins), "{problems:?}");
    drop(taken);
    eventually(port, Some("200"));
    assert_eq!(board.state().problems(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_several_addresses_all_are_had_or_none() {
    let board = Arc::new(Board::default());
    let checks = HealthChecks::start(Arc::clone(&board), Events::unheard());
    let taken = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let at = ["127.0.0.1", "127.0.0.2"].map(|text| text.parse().unwrap());
    checks.set(&wanted(&[("a", port, 1)]), Where::At(at.into()));
    let begun = Instant::now();
    while board.state().problems().is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10));
    }
    eventually(port, None);
}
