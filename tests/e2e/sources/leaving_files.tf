# Leaves files, one of them behind a directory without any rights, and shared memory, wherever a run can write.
resource "terraform_data" "leaving" {
  provisioner "local-exec" {
    command = <<-EOT
      mkdir -p /tmp/left/locked && echo x > /tmp/left/locked/file && chmod 0 /tmp/left/locked
      cd /work && echo x > left && echo x > /dev/shm/left
      setsid sleep 701.5 > /dev/null 2>&1 &
    EOT
  }
}
