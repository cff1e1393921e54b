//! The program: flags, its one line, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

/// Ends the program with the test, also when that fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secure-tunneling-emulator"));
    for flag in ["LISTEN", "DATA_LISTEN", "DATA_TLS", "QUOTAS", "REGION", "ACCOUNT_ID"] {
        command.env_remove(format!("SECURE_TUNNELING_EMULATOR_{flag}"));
    }
    // Other tests run at the same time.
    command.env("SECURE_TUNNELING_EMULATOR_DATA_LISTEN", "127.0.0.1:0");
    command
}

fn output(args: &[&str]) -> Output {
    command().args(args).output().expect("the program")
}

fn start(command: &mut Command) -> (Program, SocketAddr) {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program");
    let stdout = child.stdout.take().expect("stdout");
    let program = Program(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let addr = line.strip_prefix("listening on http://").expect("the line").trim_end().parse();
    (program, addr.expect("an address"))
}

fn post(addr: SocketAddr, operation: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("a connection");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: IoTSecuredTunneling.{operation}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    stream
}

fn call(addr: SocketAddr, operation: &str) -> String {
    let mut answer = String::new();
    post(addr, operation).read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn it_tells_where_it_listens_and_answers_there_with_aws_s_quotas() {
    let (_program, addr) = start(command().args(["--listen", "127.0.0.1:0"]));
    let answer = call(addr, "OpenTunnel");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("arn:aws:iot:us-east-1:123456789012:tunnel/"), "{answer}");
    assert!((0..5).any(|_| call(addr, "OpenTunnel").contains("LimitExceededException")));
}

/// The lines that a program says at its start, and the program.
fn lines(args: &[&str], count: usize) -> (Program, Vec<String>) {
    let mut child = command().args(args).stdout(Stdio::piped()).spawn().expect("the program");
    let stdout = child.stdout.take().expect("stdout");
    let program = Program(child);
    let lines = BufReader::new(stdout).lines().take(count).map(|line| line.expect("a line")).collect();
    (program, lines)
}

#[test]
fn it_tells_where_the_data_plane_is_and_whom_to_trust_there() {
    let (_program, said) = lines(&["--listen", "127.0.0.1:0"], 2);
    let addr: SocketAddr = said[1].strip_prefix("data plane on ws://").expect("the line").parse().expect("an address");
    let mut stream = TcpStream::connect(addr).expect("a connection");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("The data plane answers GET /tunnel only"), "{answer}");

    let (mut program, said) = lines(&["--listen", "127.0.0.1:0", "--data-tls", "self-signed"], 3);
    assert!(said[1].starts_with("data plane on wss://127.0.0.1:"), "{said:?}");
    let file = said[2].strip_prefix("data plane's CA certificate in ").expect("the line");
    assert!(std::fs::read_to_string(file).expect("the file").starts_with("-----BEGIN CERTIFICATE-----"));
    let sent = Command::new("kill").args(["-s", "TERM", &program.0.id().to_string()]).status();
    assert!(sent.expect("kill").success() && program.0.wait().expect("the end").success());
    assert!(!std::path::Path::new(file).exists(), "the file goes with the program");
}

#[test]
fn flags_and_their_env_twins_say_the_same() {
    let args = ["--listen", "127.0.0.1:0", "--quotas", "none", "--region", "eu-west-1", "--account-id", "000000000001"];
    let (_flags, by_flags) = start(command().args(args));
    let (_env, by_env) = start(
        command()
            .env("SECURE_TUNNELING_EMULATOR_LISTEN", "127.0.0.1:0")
            .env("SECURE_TUNNELING_EMULATOR_QUOTAS", "none")
            .env("SECURE_TUNNELING_EMULATOR_REGION", "eu-west-1")
            .env("SECURE_TUNNELING_EMULATOR_ACCOUNT_ID", "000000000001"),
    );
    for addr in [by_flags, by_env] {
        for _ in 0..20 {
            let answer = call(addr, "OpenTunnel");
            assert!(answer.contains("arn:aws:iot:eu-west-1:000000000001:tunnel/"), "{answer}");
        }
    }
}

#[test]
fn sigint_and_sigterm_end_it_at_once_also_while_a_call_hangs() {
    for signal in ["INT", "TERM"] {
        let (mut program, addr) = start(command().args(["--listen", "127.0.0.1:0"]));
        let faults = r#"[{"operation":"OpenTunnel","kind":"HangAfter"}]"#;
        let length = faults.len();
        let mut control = TcpStream::connect(addr).expect("a connection");
        write!(
            control,
            "PUT /_emulator/faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{faults}"
        )
        .expect("sent");
        control.read_to_string(&mut String::new()).expect("an answer");
        let _hanging = post(addr, "OpenTunnel");
        let sent = Command::new("kill").args(["-s", signal, &program.0.id().to_string()]).status();
        assert!(sent.expect("kill").success());
        let status = program.0.wait().expect("the program's end");
        assert!(status.success(), "after SIG{signal}: {status}");
    }
}

#[test]
fn a_taken_port_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    let output = output(&["--listen", &addr]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    let expected = format!("secure-tunneling-emulator: cannot listen on {addr}: Address already in use");
    assert!(message.starts_with(&expected), "{message}");
    assert!(output.stdout.is_empty());

    let output = self::output(&["--listen", "127.0.0.1:0", "--data-listen", &addr]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with(&expected));
}

#[test]
fn wrong_flags_are_refused_with_the_reason() {
    for (args, reason) in [
        (["--listen", "4570"], "--listen"),
        (["--quotas", "some"], "aws, none"),
        (["--data-listen", "4571"], "--data-listen"),
        (["--data-tls", "cert.pem"], "it is self-signed, or two files as cert.pem,key.pem"),
        (["--region", "US East"], "a region is written as us-east-1"),
        (["--account-id", "1234"], "an account ID has 12 digits"),
        (["--port", "1"], "--port"),
    ] {
        let output = output(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(reason), "{args:?}: {message}");
    }
}

#[test]
fn help_names_every_flag_its_default_and_its_env_twin() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout);
    for word in [
        "--listen",
        "127.0.0.1:4570",
        "SECURE_TUNNELING_EMULATOR_LISTEN",
        "--data-listen",
        "127.0.0.1:4571",
        "SECURE_TUNNELING_EMULATOR_DATA_LISTEN",
        "--data-tls",
        "self-signed",
        "SECURE_TUNNELING_EMULATOR_DATA_TLS",
        "--quotas",
        "[default: aws]",
        "SECURE_TUNNELING_EMULATOR_QUOTAS",
        "--region",
        "us-east-1",
        "SECURE_TUNNELING_EMULATOR_REGION",
        "--account-id",
        "123456789012",
        "SECURE_TUNNELING_EMULATOR_ACCOUNT_ID",
    ] {
        assert!(help.contains(word), "{word} is missing in:\n{help}");
    }
}
