//! A question to a running agent, over its status server.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::de::DeserializeOwned;

/// A GET over HTTP/1.0, which needs neither chunks nor a client library; its answer is JSON.
pub fn get<T: DeserializeOwned>(agent: SocketAddr, path: &str) -> io::Result<T> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&agent, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {agent}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body)?)
}
