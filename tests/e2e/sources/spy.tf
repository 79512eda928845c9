# Tries what the run's own user can't do to the agent, the first process of the container.
resource "terraform_data" "spy" {
  provisioner "local-exec" {
    command = <<-EOT
      python3 reads_memory.py 1
      for file in /usr/bin/planted $(python3 -c 'import terrahalt_agent as a; print(a.__file__)' 2>/dev/null || echo /opt/planted); do
        (echo planted >> $file) 2> /dev/null && echo WROTE $file || echo refused file
      done
      kill -KILL 1; kill -STOP 1; echo survived
    EOT
  }
}
