//! Serving an image until a signal comes, or the last client has gone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use drystone_exec_linux::{Client, Config, NbdPlan, TlsCredentials, TlsServer, io_error_words};
use drystone_tools::message::{Failure, Message};
use drystone_tools::nbd::args::ServeArgs;
use drystone_tools::object::{find_authorization, find_tls, give_objects, tls_credentials};
use rustix::fs::FlockOperation;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::events::tell_events;
use crate::listen::{Listening, inherited, listen};
use crate::{background, device, image};

pub fn run(args: &ServeArgs, tool: &str, config: Config) -> Result<u8, Failure> {
    // A device is said before anything else, also in the reference's words.
    let said = args.device.as_ref().map(|_| "NBD device").or(args.address_said);
    let activated = inherited(tool, said)?.map(Listening::checked).transpose()?;
    if args.device.is_some() && args.tls.credentials.is_some() {
        return Err(Failure::new("TLS is not supported with a host device"));
    }
    let credentials = tls_credentials(&args.tls.objects).map_err(Failure::new)?;
    let tls = server_tls(args, &credentials)?;
    let ran = drystone_exec_linux::run(config, async |client: Client| {
        give_objects(&client, &args.tls.objects, credentials);
        serve(&client, args, tool, (activated, tls)).await
    });
    ran.unwrap_or_else(|error| Err(Failure::new(format!("the executor could not start: {error}"))))
}

/// Writes this process's number to a file, which nobody else does while it is kept. It stays there in the end.
fn write_pid_file(path: &str) -> Result<File, Failure> {
    let failed =
        |what: &str, error: std::io::Error| Failure::new(format!("{what}: {}", io_error_words(&error)));
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = opened.map_err(|error| failed(&format!("Could not create '{path}'"), error))?;
    let locked = rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|error| failed("Cannot lock pid file", error.into()))?;
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| failed("Failed to write pid file", error))?;
    Ok(file)
}

/// Says why clients came to nothing.
fn tell(tool: &str) -> Box<dyn Fn(&str)> {
    let tool = tool.to_owned();
    Box::new(move |why| crate::say(&Message::Error(why.to_owned()).render(&tool)))
}

/// What clients are shown, and who may connect, where connections are encrypted.
fn server_tls(
    args: &ServeArgs,
    credentials: &[(String, TlsCredentials)],
) -> Result<Option<TlsServer>, Failure> {
    let Some(id) = &args.tls.credentials else { return Ok(None) };
    let failed = |text: String| Failure::new(format!("Failed to get TLS creds: {text}"));
    let found = find_tls(&args.tls.objects, credentials, id).map_err(failed)?;
    let server = found.for_server().map_err(|text| failed(text.into()))?.clone();
    let Some(id) = &args.tls.authorization else { return Ok(Some(server)) };
    let authorization = find_authorization(&args.tls.objects, id).map_err(Failure::new)?;
    Ok(Some(server.allowing(move |name| authorization.allows(name))))
}

async fn serve(
    client: &Client,
    args: &ServeArgs,
    tool: &str,
    (activated, tls): (Option<Listening>, Option<TlsServer>),
) -> Result<u8, Failure> {
    let export = image::open(client, args).await?;
    let served = export.image.clone();
    let mut listening = match activated {
        Some(listening) => listening,
        None => listen(&args.address, args.selinux_label.as_deref())?,
    };
    let (stop, signalled) = UnixStream::pair().map_err(|error| Failure::new(error.to_string()))?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let end = signalled.try_clone().map_err(|error| Failure::new(error.to_string()))?;
        let registered = signal_hook::low_level::pipe::register(signal, end);
        registered.map_err(|error| Failure::new(format!("Failed to handle signals: {error}")))?;
    }
    let _pid_file = args.pid_file.as_deref().map(write_pid_file).transpose()?;
    let plan = NbdPlan {
        listeners: std::mem::take(&mut listening.sockets),
        exports: vec![export],
        clients_max: if args.clients_max == 0 { usize::MAX } else { args.clients_max },
        persistent: args.persistent,
        tls,
        handshake_max: Duration::from_secs(args.handshake_limit.into()),
        stop: Some(stop.into()),
        tell: Some(tell(tool)),
    };
    let fed = match &args.device {
        Some(path) => Some(device::feed(path, args, tool, signalled)?),
        None => None,
    };
    let server = client.serve(plan).map_err(|error| Failure::new(format!("Failed to serve: {error}")))?;
    if background::is_child() && fed.is_none() {
        background::detach(args.verbose)?;
    }
    server.ended().await;
    drop(listening);
    let closed = served.close().await;
    tell_events(client);
    closed.map_err(|error| Failure::new(error.to_string()))?;
    fed.map_or(Ok(()), device::Feeding::end)?;
    Ok(0)
}
