//! `/dev/shm` is as large as the memory limit may be: what is in it counts towards that.

use isol8_api::Options;

use crate::harness::{Server, on_each_backend, python};

on_each_backend!(
    as_much_memory_can_be_shared_as_there_is,
    what_exceeds_the_memory_limit_is_said_to,
);

fn shared(mebibytes: usize) -> String {
    format!(
        "from multiprocessing import shared_memory
size = {mebibytes} << 20
memory = shared_memory.SharedMemory(create=True, size=size)
memory.buf[:] = b'x' * size
print(memory.buf[size - 1])
memory.unlink()"
    )
}

async fn as_much_memory_can_be_shared_as_there_is(server: Server) {
    let client = server.client();
    let small = client.execute(python(&shared(150))).await.unwrap();
    assert_eq!(small.stdout, "120", "{}", small.stderr);
    // The sandbox may be one that waited, with the usual limit.
    let options = Options {
        memory_limit: Some("1g".parse().unwrap()),
        ..Options::default()
    };
    let raised = client.execute_with(python(&shared(450)), options).await;
    let raised = raised.unwrap();
    assert_eq!(raised.stdout, "120", "{}", raised.stderr);
    server.stop();
}

async fn what_exceeds_the_memory_limit_is_said_to(server: Server) {
    let options = Options {
        memory_limit: Some("128m".parse().unwrap()),
        ..Options::default()
    };
    let client = server.client();
    let result = client.execute_with(python(&shared(200)), options).await;
    let result = result.unwrap();
    assert!(result.oom_killed, "{result:?}");
    assert_eq!(result.exit_code, 137, "no SIGBUS, which would be 135");
    server.stop();
}
